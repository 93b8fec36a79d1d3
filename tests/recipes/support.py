"""The recipes as the tests run them: their files, their command lines, and probes as the kubelet sends them."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import wait_until
from tests.metrics.support import get, samples
from tests.support.proxy import free_port
from tests.support.running import ROOT, Running

#: Seconds that the processes of a recipe may take to come up, or to follow, on a busy machine.
UP = 150.0

FILES = ROOT / "datasync" / "examples" / "operations" / "files"
PAGES = ROOT / "docs" / "recipes"

#: What pip installs as a command: the module that is the same program.
MODULES = {"gunicorn": "gunicorn", "celery": "celery", "datasync": "datasync"}


def document(name: str) -> Any:
    """Return the YAML in the file *name*."""
    return yaml.safe_load((FILES / name).read_text())


def page_commands(page: str, program: str) -> list[list[str]]:
    """Return the words of each call of *program* in the blocks of shell of the page *page*."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```$", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if program in words:
                found.append(words[words.index(program) :])
    return found


def image() -> dict[str, list[str]]:
    """Return the instructions of the Dockerfile, in order: each name with the texts that follow it."""
    found: dict[str, list[str]] = {}
    for line in (FILES / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            name, _, text = line.partition(" ")
            found.setdefault(name, []).append(text.strip())
    return found


def unit(name: str) -> dict[str, dict[str, str]]:
    """Return the sections of a unit of systemd, each with its settings; none may be there twice."""
    sections: dict[str, dict[str, str]] = {}
    for line in (FILES / name).read_text().replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line:
            setting, _, value = line.partition("=")
            assert setting not in section, line
            section[setting] = value
    return sections


def started(
    words: Sequence[str], swap: Mapping[str, str] | None = None, extra: Mapping[str, str] | None = None
) -> Running:
    """Start a command line of a recipe, with the names of its hosts and folders swapped for those of the test."""
    program, *arguments = words
    for before, after in (swap or {}).items():
        arguments = [argument.replace(before, after) for argument in arguments]
    module = MODULES[Path(program).name]
    return Running("-W", "ignore", "-m", module, *arguments, extra=extra)


class Web:
    """A web application of a recipe on a port of its own, and its workers."""

    def __init__(self, process: Running, port: int) -> None:
        self.process, self.port = process, port

    @property
    def pids(self) -> set[int]:
        """The master and its workers."""
        pid = self.process.pid
        return {pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())}

    def flags(self) -> Any:
        """Return the flags that one worker has, None if there was no answer."""
        status, text = get(self.port, "/flags")
        found = json.loads(text) if status == HTTPStatus.OK else {}
        return found.get("flags", found)  # that of Flask also has the process

    def has(self, flags: Mapping[str, Any]) -> bool:
        """Whether forty answers in a row have *flags*."""
        return all(self.flags() == flags for _ in range(40))

    def scraped(self, name: str) -> float:
        """Return the sum of a metric of one source, whose labels are in *name* except for the source."""
        return sum(
            number
            for labels, number in samples(get(self.port, "/metrics")[1]).items()
            if re.sub(r'source="[^"]*"', "SOURCE", labels) == name
        )

    def wait_ready(self, workers: int) -> None:
        """Return when each of *workers* has read the flags."""
        ready = 'datasync_source_state{SOURCE,state="ready"}'
        wait_until(
            lambda: self.flags() is not None and self.scraped(ready) == workers,
            f"{workers} workers are ready",
            UP,
        )


@contextmanager
def serving(words: Sequence[str], environment: Mapping[str, str], options: str = "") -> Iterator[Web]:
    """Run the gunicorn of a recipe: what the recipe has as an address is what the variable of gunicorn says here."""
    port = free_port()
    mapped = {**environment, "GUNICORN_CMD_ARGS": f"--bind=127.0.0.1:{port} {options}"}
    with ended(started(words, extra=mapped)) as process:
        yield Web(process, port)


@contextmanager
def ended(process: Running) -> Iterator[Running]:
    """End it in order, so that its own processes end with it; its exit code is that of an end in order."""
    with process:
        try:
            yield process
        finally:
            process.send(signal.SIGTERM)
            code = process.wait(UP)
        assert code == 0, process.output


class Manager:
    """The socket on which systemd hears its services, and what it heard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def hears(self, line: str, times: int = 1) -> bool:
        """Whether *line* came at least *times* so far."""
        try:
            while True:
                self.heard += self._socket.recv(4096).decode().splitlines()
        except BlockingIOError:
            return self.heard.count(line) >= times

    def close(self) -> None:
        self._socket.close()


class Kubelet:
    """Probes a container as its manifest says, and counts what Kubernetes would do about the answers.

    Args:
      container: That of the manifest.
      port: Where it serves here.
      pace: Seconds of the manifest in one second.
    """

    def __init__(self, container: Mapping[str, Any], port: int, pace: float) -> None:
        self._port = port
        self._probes = {kind: container[f"{kind}Probe"] for kind in ("liveness", "readiness")}
        self._failed = dict.fromkeys(self._probes, 0)
        self.every = min(probe.get("periodSeconds", 10) for probe in self._probes.values()) / pace
        #: Probes that were sent.
        self.sent = 0
        #: Answers other than success, the restarts that they make, and the times that they end the service.
        self.failures: list[str] = []
        self.restarts = self.removals = 0

    def probe(self) -> None:
        """Send each probe once."""
        for kind, probe in self._probes.items():
            status, text = get(self._port, probe["httpGet"]["path"])
            self.sent += 1
            if 200 <= status < 400:
                self._failed[kind] = 0
                continue
            self.failures.append(f"{kind}: {status} {text}")
            self._failed[kind] += 1
            if self._failed[kind] == probe.get("failureThreshold", 3):
                self._failed[kind] = 0
                if kind == "liveness":
                    self.restarts += 1
                else:
                    self.removals += 1
