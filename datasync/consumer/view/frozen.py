"""JSON values that nobody can change by accident: subclasses of ``dict`` and ``list`` that ``json.dumps`` accepts.

Every thread that reads a view gets the same object, so that a read costs no copy. Source: contract C20.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

#: Types that are returned as they are; looked up before anything else, because most values are scalars.
_SCALARS = frozenset({str, int, float, bool, type(None), bytes})


def _refuse(self: object, *_args: object, **_named: object) -> NoReturn:
    raise TypeError("a value of a view is shared and cannot be changed: change a copy.deepcopy() of it")


class FrozenDict(dict[str, Any]):
    """A ``dict`` that cannot be changed. ``copy.deepcopy`` returns an ordinary one. Threads: any."""

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, memo: object) -> dict[str, Any]:
        return {key: thaw(value) for key, value in self.items()}

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


class FrozenList(list[Any]):
    """A ``list`` that cannot be changed. ``copy.deepcopy`` returns an ordinary one. Threads: any."""

    __slots__ = ()

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __copy__(self) -> FrozenList:
        return self

    def __deepcopy__(self, memo: object) -> list[Any]:
        return [thaw(value) for value in self]

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., Any], tuple[list[Any]]]:
        return FrozenList, (list(self),)


def freeze(value: Any) -> Any:
    """Return *value* with every ``dict`` and ``list`` in it frozen; other types, such as dataclasses, as they are."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        return FrozenDict({key: one if type(one) in _SCALARS else freeze(one) for key, one in value.items()})
    if kind is list:
        return FrozenList([one if type(one) in _SCALARS else freeze(one) for one in value])
    return bytes(value) if kind is bytearray else frozenset(value) if kind is set else value


def thaw(value: Any) -> Any:
    """Return a copy of *value* with ordinary ``dict`` and ``list`` objects."""
    if isinstance(value, dict):
        return {key: thaw(one) for key, one in value.items()}
    if isinstance(value, list):
        return [thaw(one) for one in value]
    return value


def same(one: Any, other: Any) -> bool:
    """Return True if the values are equal and of equal types: ``==`` alone takes 1, 1.0 and True for the same."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(key in other and same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
