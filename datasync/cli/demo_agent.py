"""The second process of the demo: the agent of the examples, with a dataplane that survives it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from datasync.cli.console import make_console
from datasync.cli.story import Story
from datasync.examples.agent import follow
from datasync.examples.dataplane import Dataplane
from datasync.examples.launch import block_signals
from datasync.runtime.threads import Worker


def run(url: str, dataplane: Path) -> None:
    """Run the agent on *url* until a signal, or until the parent process ends."""
    block_signals()
    Worker("cli-demo-lifeline", _end_with_parent).start()
    story = Story(make_console(), "agent")
    follow(url, dataplane=Dataplane(dataplane), report=story.report)


def _end_with_parent(worker: Worker) -> None:
    """Wait for the end of standard input, a pipe that closes when the parent process ends."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
