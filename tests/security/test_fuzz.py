"""Every parser of outside bytes for a moment; ``python -m tests.security.fuzz`` does it for as long as it is told.

The rule of each target (C15, C16): only errors of the house come out, in bounded time; nothing is half applied; a
secret or value is in none of what is said; whoever reads goes on.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.security.fuzz.campaign import Campaign, run_hypothesis
from tests.security.fuzz.supply import SECRET, Supply
from tests.security.fuzz.target import Finding, Target, only
from tests.security.fuzz.targets import TARGETS


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    with TARGETS[request.param]() as opened:
        yield opened


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """What the library recovers from is worth a line in a log, and here are thousands of such."""
    import logging

    loggers = [
        logging.getLogger(name) for name in ("datasync.keyval", "datasync.grpcsync", "grpc._common", "grpc._server")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_whatever_comes_the_answer_is_one_of_the_house(target: Target) -> None:
    @settings(
        max_examples=target.examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(st.binary(min_size=30, max_size=200))
    def run(data: bytes) -> None:
        target.run(data)

    run()


class Leaky(Target):
    """Tells its input now and then."""

    name = "leaky"
    about = "a target that finds something"

    def run(self, data: bytes) -> None:
        with only(ValueError):
            if data[0] % 2:
                raise ValueError(f"no such thing: {SECRET}")
        if data[0] % 3 == 0:
            raise KeyError("what")


def test_a_campaign_finds_each_thing_once_keeps_its_input_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = Campaign(Leaky(), 0.5, tmp_path)
    run_hypothesis(campaign)
    # then both are found, and each has a file that shows it again
    assert campaign.findings == 2
    assert campaign.executions > 10
    assert "FOUND KeyError" in capsys.readouterr().err
    found = set()
    for file in tmp_path.glob("leaky-*"):
        with pytest.raises((Finding, KeyError)) as caught:
            Leaky().run(file.read_bytes())
        found.add(caught.type)
    assert found == {Finding, KeyError}


def test_choices_come_from_the_bytes_alone() -> None:
    data = bytes(range(200))
    first, second = Supply(data), Supply(data)
    assert [first.mutated([b"abc", b"def"]) for _ in range(20)] == [second.mutated([b"abc", b"def"]) for _ in range(20)]
    assert not first


@pytest.mark.slow
def test_the_command_says_how_many_executions_and_findings_there_were(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.security.fuzz", "--target", "protojson", "--seconds", "2"]
    done = subprocess.run(
        [*command, "--engine", "hypothesis", "--out", tmp_path], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"protojson: [1-9]\d* executions in \d+ s, 0 finding\(s\)", done.stdout)
