"""One target against the clock: runs it, keeps what it finds, goes on."""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.security.fuzz.target import Finding, Target

#: Seconds that one execution may take: "in bounded time".
LIMIT = 10.0
#: Seconds after which the process is ended with the stacks of all its threads: an execution that never comes back.
HANG = 60.0


class Campaign:
    """Counts executions and findings of *target*; a finding that was seen before is the same one."""

    def __init__(self, target: Target, seconds: float, folder: Path, *, watched: bool = False) -> None:
        self._target = target
        #: Where inputs are kept.
        self.folder = folder
        self._watched = watched
        self._begin: float | None = None
        self._seconds = seconds
        self._seen: dict[str, bytes] = {}
        self.executions = 0
        self.slowest = 0.0

    @property
    def over(self) -> bool:
        return self.seconds >= self._seconds

    @property
    def seconds(self) -> float:
        """Since the first execution: what it takes to get ready does not count."""
        return 0.0 if self._begin is None else time.monotonic() - self._begin

    @property
    def findings(self) -> int:
        return len(self._seen)

    def execute(self, data: bytes) -> None:
        """Run the target once; what it finds is kept, and stops nothing."""
        if self._begin is None:
            self._begin = time.monotonic()
        if self._watched and self.executions % 64 == 0:
            faulthandler.dump_traceback_later(HANG, exit=True)
        self.executions += 1
        begin = time.monotonic()
        try:
            self._target.run(data)
            taken = time.monotonic() - begin
            self.slowest = max(self.slowest, taken)
            if taken > LIMIT:
                raise Finding(f"it took {taken:.1f} s")
        except Exception as error:
            self._keep(error, data)

    def _keep(self, error: Exception, data: bytes) -> None:
        where = f"{type(error).__name__} at {_place(error)}"
        if where in self._seen:
            return
        self._seen[where] = data
        file = self.folder / f"{self._target.name}-{len(self._seen)}"
        file.write_bytes(data)
        print(f"FOUND {where}; the input is in {file}", file=sys.stderr)
        traceback.print_exception(error)

    def report(self, engine: str) -> str:
        return (
            f"{self._target.name}: {self.executions} executions in {self.seconds:.0f} s, {self.findings} finding(s), "
            f"slowest {self.slowest * 1000:.0f} ms ({engine})"
        )


def _place(error: BaseException) -> str:
    """Where it began: the innermost line of the package in the first exception of the chain that has one."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    for one in reversed(chain):
        for frame in reversed(traceback.extract_tb(one.__traceback__)):
            if f"{os.sep}datasync{os.sep}" in frame.filename and "tests" not in frame.filename:
                return f"{Path(frame.filename).name}:{frame.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def run_hypothesis(campaign: Campaign) -> None:
    """Bytes of hypothesis, until time is over."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    @settings(max_examples=500, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(min_size=30, max_size=400))
    def execute(data: bytes) -> None:
        if not campaign.over:
            campaign.execute(data)

    while not campaign.over:
        execute()


def run_atheris(campaign: Campaign, finish: Callable[[], None]) -> None:
    """Bytes of libFuzzer, guided by the coverage of the package, until *finish* ends the process."""
    import atheris

    def execute(data: bytes) -> None:
        if campaign.over:
            finish()
        campaign.execute(data)

    # Its own first inputs are a byte long and grow slowly; a target makes a hundred choices.
    corpus = campaign.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    chances = random.Random(0)
    for number in range(100):
        (corpus / str(number)).write_bytes(chances.randbytes(10 + 4 * number))
    atheris.Setup([sys.argv[0], "-max_len=600", "-len_control=0", "-verbosity=0", str(corpus)], execute)
    atheris.Fuzz()
