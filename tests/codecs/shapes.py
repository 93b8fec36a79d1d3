"""One record in every kind of class that ``typed`` takes."""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

import attrs
import msgspec
import pydantic


@dataclasses.dataclass
class DataPort:
    number: int
    name: str = ""


@dataclasses.dataclass
class DataHost:
    name: str
    mtu: int = 1500
    load: float = 0.0
    ports: list[DataPort] = dataclasses.field(default_factory=list)
    tags: dict[str, int] = dataclasses.field(default_factory=dict)
    note: str | None = None


class DictPort(TypedDict):
    number: int
    name: str


class DictHost(TypedDict):
    name: str
    mtu: int
    load: float
    ports: list[DictPort]
    tags: dict[str, int]
    note: str | None


@attrs.define
class AttrsPort:
    number: int
    name: str = ""


@attrs.define
class AttrsHost:
    name: str
    mtu: int = 1500
    load: float = 0.0
    ports: list[AttrsPort] = attrs.field(factory=list)
    tags: dict[str, int] = attrs.field(factory=dict)
    note: str | None = None


class StructPort(msgspec.Struct):
    number: int
    name: str = ""


class StructHost(msgspec.Struct):
    name: str
    mtu: int = 1500
    load: float = 0.0
    ports: list[StructPort] = []
    tags: dict[str, int] = {}
    note: str | None = None


class ModelPort(pydantic.BaseModel):
    number: int
    name: str = ""


class ModelHost(pydantic.BaseModel):
    name: str
    mtu: int = 1500
    load: float = 0.0
    ports: list[ModelPort] = []
    tags: dict[str, int] = {}
    note: str | None = None


#: The class of a host, and that of its ports.
HOSTS: list[tuple[Any, Any]] = [
    (DataHost, DataPort),
    (DictHost, DictPort),
    (AttrsHost, AttrsPort),
    (StructHost, StructPort),
    (ModelHost, ModelPort),
]
