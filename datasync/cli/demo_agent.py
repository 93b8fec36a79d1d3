"""The second process of the demo: the agent of the examples, with a dataplane that outlives it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from datasync.cli.console import make_console
from datasync.cli.story import Story
from datasync.examples.agent import block_signals, follow
from datasync.examples.dataplane import Dataplane
from datasync.runtime.threads import Worker


def run(url: str, dataplane: Path) -> None:
    """Follow *url* until a signal, or until the process that started this one is gone."""
    block_signals()
    Worker("cli-demo-lifeline", _end_with_parent).start()
    story = Story(make_console(), "agent")
    follow(url, dataplane=Dataplane(dataplane), report=story.report)


def _end_with_parent(worker: Worker) -> None:
    """Standard input is a pipe that nobody writes to: its end means that the parent has ended."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
