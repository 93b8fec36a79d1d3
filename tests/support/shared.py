"""A server that the workers of one test run share: the first that needs it starts it, the last that used it ends it."""

from __future__ import annotations

import fcntl
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import pytest

T = TypeVar("T")


def run_folder(tmp_path_factory: pytest.TempPathFactory, worker: str | None) -> Path:
    """The temporary folder of the whole run, that of the controller for a *worker* of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return own if worker is None else own.parent


@contextmanager
def shared(folder: Path, start: Callable[[], T], stop: Callable[[T], None]) -> Iterator[T]:
    """A server that all processes with *folder* share. It is pickled: it must be of use without its process.

    Each user holds a lock, which ends with its process: a worker that crashes does not keep the server alive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = folder / "server.pickle"
    with (folder / "gate").open("ab") as gate, (folder / "users").open("ab") as users:
        with held(gate):
            if not told.exists():
                told.write_bytes(pickle.dumps(start()))
            server: T = pickle.loads(told.read_bytes())
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield server
        finally:
            with held(gate):
                if _is_last(users):
                    told.unlink()
                    stop(server)


@contextmanager
def held(gate: IO[bytes]) -> Iterator[None]:
    """Hold the lock of the open file *gate*, which one process has at a time."""
    fcntl.flock(gate, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(gate, fcntl.LOCK_UN)


def _is_last(users: IO[bytes]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(users, fcntl.LOCK_UN)
        return False
    return True
