"""The TTL policy of a mirror.

Source: contract C16, C17.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from datasync.errors import DatasyncError, InvalidArgumentError, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.types import Capability

#: ``drop`` copies the value alone, ``copy`` the time that is left too, ``refuse`` nothing.
TTL_POLICIES = ("drop", "copy", "refuse")


class KeyLifetimes(NamedTuple):
    """The remaining lifetimes of some keys of the source, without prefix.

    Attributes:
      seconds: The seconds to live with which a key is copied; the others are copied without.
      left_out: The keys that are not copied, with the reason; None for one that is gone.
    """

    seconds: dict[str, float]
    left_out: dict[str, DatasyncError | None]


class Lifetimes:
    """Applies a policy to the keys of *source* under *prefix*.

    Raises:
      InvalidArgumentError: *policy* is not one.
      UnsupportedError: The source has keys that expire and cannot tell which, or *destination* has none.

    Threads: any.
    """

    def __init__(self, source: Store, prefix: str, destination: Store, policy: str) -> None:
        if policy not in TTL_POLICIES:
            raise InvalidArgumentError(f"ttl is one of {', '.join(TTL_POLICIES)}, not {policy!r}")
        self._source = source
        self._prefix = prefix
        self._drops = policy == "drop"
        self._copies = policy == "copy"
        if not self._drops:
            source.time_left(())
        if self._copies and Capability.TTL not in destination.capabilities:
            raise UnsupportedError(f"{destination.name} has no keys that expire: choose ttl drop or refuse")

    def read(self, keys: Iterable[str]) -> KeyLifetimes:
        """Return how *keys* are copied. With the policy ``drop`` the source is not asked.

        A key that is gone has expired, or its delete follows: copied now, it could stay for ever.
        """
        result = KeyLifetimes({}, {})
        if self._drops:
            return result
        asked = {self._prefix + key: key for key in keys}
        found = self._source.time_left(asked)
        for absolute, key in asked.items():
            left = found.get(absolute)
            if left is None:
                result.left_out[key] = None
            elif left < math.inf and self._copies:
                result.seconds[key] = left
            elif left < math.inf:
                why = f"{key!r} expires, which the mirror refuses: choose ttl drop or copy"
                result.left_out[key] = InvalidArgumentError(why)
        return result
