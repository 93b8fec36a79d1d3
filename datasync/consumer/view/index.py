"""Secondary indexes of a view. Source: contract C20."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Returns the index values of a key and its value: one, or a list, tuple or set of them.
IndexFunction = Callable[[str, Any], Any]


class Index:
    """The keys by what *function* returns. Threads: ``terms`` without a lock, the others under the owner's lock."""

    def __init__(self, name: str, function: IndexFunction) -> None:
        self.name = name
        self.function = function
        self._keys: dict[Hashable, set[str]] = {}
        self._terms: dict[str, tuple[Hashable, ...]] = {}
        self._failed = False

    def terms(self, key: str, value: Any) -> tuple[Hashable, ...]:
        """Return the index values of *key*; none when *function* raises, which is logged once."""
        try:
            found = self.function(key, value)
            terms = tuple(found) if isinstance(found, (list, tuple, set, frozenset)) else (found,)
            hash(terms)
            return terms
        except Exception as error:
            if not self._failed:
                log.error("the index %r raised %s for the key %r", self.name, type(error).__name__, key)
            self._failed = True
            return ()

    def set_locked(self, key: str, terms: Iterable[Hashable]) -> None:
        """Replace the index values of *key*."""
        for term in self._terms.pop(key, ()):
            keys = self._keys[term]
            keys.discard(key)
            if not keys:
                del self._keys[term]
        kept = tuple(dict.fromkeys(terms))
        if kept:
            self._terms[key] = kept
            for term in kept:
                self._keys.setdefault(term, set()).add(key)

    def keys_locked(self, term: Hashable) -> list[str]:
        """Return the keys with the index value *term*, in order."""
        return sorted(self._keys.get(term, ()))
