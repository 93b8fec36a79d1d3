"""Progress on standard error of what takes longer than a second: count, rate, and time left where the end is known."""

from __future__ import annotations

import sys
import time

#: Seconds after which the first line is shown.
PATIENCE = 1.0
#: Seconds between two lines: on a terminal, where each replaces the one before, and elsewhere.
INTERVALS = (0.2, 10.0)


class ProgressLine:
    """A line that says how far a transfer is. Used by one thread; a context manager that ends the line."""

    def __init__(self, doing: str, total: int | None = None) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._started = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._due = self._started + PATIENCE
        self._shown = False

    @property
    def done(self) -> int:
        """The number of items that are done."""
        return self._done

    def advance(self, count: int = 1) -> None:
        """Note that *count* more are done, and show it if it is time."""
        self._done += count
        now = time.monotonic()
        if now >= self._due:
            self._due = now + INTERVALS[0 if self._terminal else 1]
            self._show(now)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and self._terminal:
            self._show(time.monotonic())
            print(file=sys.stderr)

    def _show(self, now: float) -> None:
        self._shown = True
        text = progress_text(self._doing, self._done, self._total, now - self._started)
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(f"datasync: {text}", file=sys.stderr, flush=True)


def progress_text(doing: str, done: int, total: int | None, seconds: float) -> str:
    """Return ``exporting: 1,200 of 9,000 keys, 600 keys/s, 13 s left``."""
    rate = done / seconds if seconds > 0 else 0.0
    if total is None:
        return f"{doing}: {done:,} keys, {rate:,.0f} keys/s"
    left = f", {(total - done) / rate:,.0f} s left" if rate > 0 and done < total else ""
    return f"{doing}: {done:,} of {total:,} keys, {rate:,.0f} keys/s{left}"
