"""The checks of a reconciler's arguments, done before anything is opened.

Source: contract C20.
"""

from __future__ import annotations

import math

from datasync.errors import InvalidArgumentError


def check_arguments(
    name: str,
    apply: object,
    codec: object,
    workers: int,
    every: float | None,
    deadline: float | None,
    settle: tuple[float, float] | None,
) -> None:
    """Raise ``InvalidArgumentError`` for the first one that is not valid."""
    if not callable(apply) or not callable(getattr(codec, "decode", None)):
        raise InvalidArgumentError(f"the reconciler {name!r} needs a function apply, and a codec")
    if not isinstance(workers, int) or workers < 1:
        raise InvalidArgumentError(f"workers of {name!r} must be 1 or more")
    for what, seconds in (("every", every), ("deadline", deadline)):
        if seconds is not None and not 0 < seconds < math.inf:
            raise InvalidArgumentError(f"{what} of {name!r} must be a number of seconds above 0")
    if settle is not None and not 0 <= settle[0] <= settle[1] < math.inf:
        raise InvalidArgumentError(f"settle of {name!r} must be the least and the most seconds")
