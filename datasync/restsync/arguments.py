"""The check of numbers that callers give, before anything is done with them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from datasync.errors import InvalidArgumentError


def check_numbers(numbers: Mapping[str, object]) -> None:
    """Raise ``InvalidArgumentError`` unless each of *numbers*, by the name of its argument, is finite and above 0."""
    for name, number in numbers.items():
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not (0 < number < math.inf):
            raise InvalidArgumentError(f"{name} must be a number above 0")
