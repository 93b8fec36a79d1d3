"""Values that a test shows in place of those of a view: see ``datasync.testing.override``.

Source: contract C20.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from datasync.consumer.view.frozen import FrozenDict

#: In place of a value: the view has no such key.
ABSENT: Any = type("Absent", (), {"__slots__": (), "__repr__": lambda self: "ABSENT"})()


class OverriddenValues(FrozenDict):
    """All values of one moment, some of which are those of a test."""

    __slots__ = ()


class Overlay:
    """Layers of values over those of a view; the newest layer that has a key counts.

    Args:
      values: Returns what is read where no layer has a key.
      snapshot: Returns all of these at one moment.

    Threads: any. Without a lock, which a forked child could find held: each step is one operation of a ``dict``.
    """

    def __init__(self, values: Callable[[], Any], snapshot: Callable[[], Mapping[str, Any]]) -> None:
        self._values = values
        self._beneath = snapshot
        self._layers: dict[object, Mapping[str, Any]] = {}
        self._merged: tuple[Mapping[str, Any], list[object], OverriddenValues] | None = None

    def __bool__(self) -> bool:
        return bool(self._layers)

    def set(self, mark: object, values: Mapping[str, Any] | None) -> None:
        """Add *values* as the newest layer, or remove the layer of *mark* where they are None."""
        if values is None:
            self._layers.pop(mark, None)
        else:
            self._layers[mark] = values

    def keys(self, mark: object) -> list[str]:
        """Return the keys of the layer of *mark*."""
        return list(self._layers.get(mark, ()))

    def covers(self, key: str) -> bool:
        """Return True if a layer has *key*."""
        return any(key in layer for layer in list(self._layers.values()))

    def read(self, key: str) -> Any:
        """Return the value that is shown for *key*, ABSENT if there is none."""
        for layer in reversed(list(self._layers.values())):
            if key in layer:
                return layer[key]
        return self._values().get(key, ABSENT)

    def __getitem__(self, key: str) -> Any:
        value = self.read(key)
        if value is ABSENT:
            raise KeyError(key)
        return value

    def get(self, key: str, default: Any) -> Any:
        value = self.read(key)
        return default if value is ABSENT else value

    def __contains__(self, key: str) -> bool:
        return self.read(key) is not ABSENT

    def __len__(self) -> int:
        return len(self.snapshot())

    def snapshot(self) -> OverriddenValues:
        """Return all values of one moment. The same object is returned until a value or a layer changes."""
        beneath, marks = self._beneath(), list(self._layers)
        merged = self._merged
        if merged is None or merged[0] is not beneath or merged[1] != marks:
            values = dict(beneath)
            for layer in list(self._layers.values()):
                values.update(layer)
            shown = OverriddenValues({key: value for key, value in values.items() if value is not ABSENT})
            self._merged = merged = (beneath, marks, shown)
        return merged[2]

    def by_index(self, terms: Callable[[str, Any], tuple[Hashable, ...]], term: Hashable) -> dict[str, Any]:
        """Return the keys and values for which *terms* has *term*, by looking at each."""
        return {key: value for key, value in sorted(self.snapshot().items()) if term in terms(key, value)}
