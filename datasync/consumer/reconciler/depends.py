"""Keys that must be looked at again because another key changed.

Source: contract C20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from datasync.codecs.api import Codec
from datasync.errors import InvalidArgumentError
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Returns the keys that depend on a key with a value.
Mapper = Callable[[str, Any], Iterable[str]]


class Dependencies:
    """The prefixes of other keys, and the functions that map them to the keys that depend on them.

    Args:
      mappers: Prefix to function, or to function and codec.
      codec: The codec of values without one of their own.

    Threads: one.
    """

    def __init__(self, mappers: Mapping[str, Mapper | tuple[Mapper, Codec[Any]]] | None, codec: Codec[Any]) -> None:
        self._mappers: dict[str, tuple[Mapper, Codec[Any]]] = {}
        #: The prefixes of the other keys.
        self.prefixes = tuple(mappers or ())
        for prefix, mapper in (mappers or {}).items():
            function, own = mapper if isinstance(mapper, tuple) else (mapper, codec)
            if not callable(function) or not callable(getattr(own, "decode", None)):
                raise InvalidArgumentError(f"depends[{prefix!r}] must be a function, or a function and a codec")
            self._mappers[prefix] = function, own

    def match(self, key: str, prefixes: Iterable[str]) -> bool:
        """Return True if *key* is one of the other keys, by the longest prefix that matches of these and *prefixes*."""
        longest = max((one for one in (*prefixes, *self.prefixes) if key.startswith(one)), key=len, default="")
        return longest in self._mappers

    def codec_of(self, key: str) -> Codec[Any]:
        """Return the codec of *key*, which is one of the other keys."""
        return self._mappers[self._prefix_of(key)][1]

    def keys_of(self, key: str, *values: bytes | None) -> set[str]:
        """Return the keys that depend on *key* with any of *values*: the old one and the new one.

        A value that cannot be decoded, and a function that raises, count as nothing, with a WARNING.
        """
        prefix = self._prefix_of(key)
        function, codec = self._mappers[prefix]
        found: set[str] = set()
        for value in values:
            if value is not None:
                try:
                    found.update(function(key, codec.decode(value)))
                except BaseException as error:  # the text may have the value
                    log.warning("depends[%r] failed for %r: %s", prefix, key, type(error).__name__)
        return found

    def _prefix_of(self, key: str) -> str:
        return max((one for one in self.prefixes if key.startswith(one)), key=len)
