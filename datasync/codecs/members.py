"""The fields that a type declares, at every level: which names of a document it knows.

Source: contract C19.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from datasync.jsontext import shown

#: The names and positions on the way to a member.
Steps = tuple[str | int, ...]

#: Qualifiers whose first argument is the type.
_WRAPPERS = ("Annotated", "Required", "NotRequired", "ReadOnly", "Final", "ClassVar")


class Node:
    """One level of a document: the fields that may stand there, and the types of other items."""

    __slots__ = ("_fields", "_inner", "is_open", "items", "kinds")

    def __init__(self, kinds: Iterable[Any] = ()) -> None:
        #: Name of a field to its types.
        self.kinds: dict[str, list[Any]] = {}
        self.items: list[Any] = []
        #: True when any name may stand there.
        self.is_open = False
        self._fields: dict[str, Node] | None = None
        self._inner: Node | None = None
        for kind in kinds:
            _add(self, kind)

    @property
    def is_leaf(self) -> bool:
        """True when nothing below it is declared."""
        return not self.kinds and not self.items

    @property
    def fields(self) -> dict[str, Node]:
        """The level of each field, made when it is first needed: a type may contain itself."""
        if self._fields is None:
            self._fields = {name: Node(kinds) for name, kinds in self.kinds.items()}
        return self._fields

    @property
    def inner(self) -> Node:
        """The level of items that are not fields."""
        if self._inner is None:
            self._inner = Node(self.items)
        return self._inner

    def unknown(self, value: Any, steps: Steps = (), path: str = "") -> Iterator[tuple[Steps, str]]:
        """Yield each member of *value* that is not declared: the way to it, and its path without positions."""
        if isinstance(value, list):
            if not self.inner.is_leaf:
                for place, item in enumerate(value):
                    yield from self.inner.unknown(item, (*steps, place), f"{path}[]")
        elif isinstance(value, dict):
            for name, item in value.items():
                field = self.fields.get(name)
                if field is not None:
                    if not field.is_leaf:
                        yield from field.unknown(item, (*steps, name), f"{path}.{name}".lstrip("."))
                elif self.is_open or not self.kinds:
                    if not self.inner.is_leaf:
                        yield from self.inner.unknown(item, (*steps, name), f"{path}{{}}")
                else:
                    yield (*steps, name), f"{path}.{shown(name, '(a name)')}".lstrip(".")


def follow(document: Any, steps: Iterable[str | int | None], node: Node) -> list[tuple[int, str | None]]:
    """Return the position of each of *steps* in *document*, with tuples of pairs for objects, and the name of fields.

    A step that is not in the document, such as the member of a union, is left out; the entry of a map has no name.
    """
    found: list[tuple[int, str | None]] = []
    for step in steps:
        if type(document) is list and isinstance(step, int) and step < len(document):
            found.append((step, None))
            document, node = document[step], node.inner
        elif type(document) is tuple and isinstance(step, str):
            place = next((at for at, (name, _) in enumerate(document) if name == step), None)
            if place is None:
                continue
            field = node.fields.get(step)
            is_field = field is not None or bool(node.kinds and not node.is_open)
            found.append((place, step if is_field else None))
            document, node = document[place][1], field or node.inner
    return found


def _add(node: Node, kind: Any) -> None:
    """Add what *kind* declares to *node*."""
    origin, arguments = get_origin(kind), get_args(kind)
    name = getattr(origin, "__name__", getattr(origin, "_name", ""))
    if origin is Union or name in ("Union", "UnionType"):
        for one in arguments:
            _add(node, one)
    elif origin is typing.Annotated or (name in _WRAPPERS and arguments):
        _add(node, arguments[0])
    elif hasattr(kind, "__supertype__"):  # a NewType
        _add(node, kind.__supertype__)
    elif hasattr(kind, "__value__"):  # an alias made by ``type X = …``
        _add(node, kind.__value__)
    elif getattr(kind, "__pydantic_root_model__", False):
        _add(node, kind.__pydantic_fields__["root"].annotation)
    else:
        target = origin if isinstance(origin, type) else kind
        fields = _fields(target) if isinstance(target, type) else None
        if fields is not None:
            for field, annotation in fields.items():
                node.kinds.setdefault(field, []).append(annotation)
            node.is_open |= _takes_more(target)
        elif isinstance(target, type) and issubclass(target, Mapping):
            node.is_open = True
            node.items += arguments[1:]
        elif kind is Any or kind is object or isinstance(kind, typing.TypeVar):
            node.is_open = True
        else:
            node.items += [one for one in arguments if one is not Ellipsis]


def _fields(kind: type) -> dict[str, Any] | None:
    """Return the names that *kind* reads, with their types; None when it declares none."""
    if hasattr(kind, "__pydantic_fields__"):
        found: dict[str, Any] = {}
        for name, field in kind.__pydantic_fields__.items():
            for alias in (name, field.alias, field.validation_alias):
                for one in getattr(alias, "choices", None) or [alias]:
                    first = one if isinstance(one, str) else (getattr(one, "path", None) or [None])[0]
                    if isinstance(first, str):
                        found[first] = field.annotation
        return found
    if hasattr(kind, "__struct_fields__"):
        import msgspec

        if kind.__struct_config__.array_like:  # type: ignore[attr-defined]
            return None
        found = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        tag = kind.__struct_config__.tag_field  # type: ignore[attr-defined]
        return {**found, tag: str} if tag else found
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
    elif hasattr(kind, "__required_keys__"):
        names = [*kind.__required_keys__, *kind.__optional_keys__]  # type: ignore[attr-defined]
    else:
        return None
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints.get(name, Any) for name in names}


def _takes_more(kind: type) -> bool:
    config = getattr(kind, "model_config", None) or getattr(kind, "__pydantic_config__", None) or {}
    return bool(config.get("extra") == "allow")
