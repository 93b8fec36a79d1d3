"""^C at any step of a function, one step after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


class Interrupt:
    """Raises ``KeyboardInterrupt`` at the *count*-th place in *functions* where ^C may come.

    Python looks for signals when a function begins, and after each call. ``sys.settrace`` would also stop before the
    exit of a ``with`` block, where no signal can come.
    """

    def __init__(self, functions: tuple[Callable[..., Any], ...], count: int) -> None:
        self._codes: set[CodeType] = {function.__code__ for function in functions}
        self._left = count
        self.raised = False

    def __enter__(self) -> Interrupt:
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        caller = frame.f_back if event == "return" else frame
        if event in ("call", "return", "c_return") and caller is not None and caller.f_code in self._codes:
            self._left -= 1
            if self._left < 0:
                sys.setprofile(None)
                self.raised = True
                raise KeyboardInterrupt
