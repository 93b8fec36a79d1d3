from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Interface(_message.Message):
    __slots__ = ("name", "description", "enabled", "mtu", "ip_addresses")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    IP_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    enabled: bool
    mtu: int
    ip_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., enabled: bool = ..., mtu: _Optional[int] = ..., ip_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("destination", "next_hop", "out_interface", "metric")
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_HOP_FIELD_NUMBER: _ClassVar[int]
    OUT_INTERFACE_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    destination: str
    next_hop: str
    out_interface: str
    metric: int
    def __init__(self, destination: _Optional[str] = ..., next_hop: _Optional[str] = ..., out_interface: _Optional[str] = ..., metric: _Optional[int] = ...) -> None: ...

class AgentStatus(_message.Message):
    __slots__ = ("pid", "event", "revision", "rejected", "resyncs", "changes", "rejections")
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    RESYNCS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    REJECTIONS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    event: str
    revision: int
    rejected: _containers.ScalarMap[str, str]
    resyncs: int
    changes: int
    rejections: int
    def __init__(self, pid: _Optional[int] = ..., event: _Optional[str] = ..., revision: _Optional[int] = ..., rejected: _Optional[_Mapping[str, str]] = ..., resyncs: _Optional[int] = ..., changes: _Optional[int] = ..., rejections: _Optional[int] = ...) -> None: ...
