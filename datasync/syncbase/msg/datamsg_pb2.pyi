from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PutDel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PUT: _ClassVar[PutDel]
    DEL: _ClassVar[PutDel]
PUT: PutDel
DEL: PutDel

class Seq(_message.Message):
    __slots__ = ("originator", "seqCreatedSec", "seq")
    ORIGINATOR_FIELD_NUMBER: _ClassVar[int]
    SEQCREATEDSEC_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    originator: str
    seqCreatedSec: int
    seq: int
    def __init__(self, originator: _Optional[str] = ..., seqCreatedSec: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class DataChangeRequest(_message.Message):
    __slots__ = ("key", "operationType", "content", "content_type", "traceparent")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OPERATIONTYPE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    key: str
    operationType: PutDel
    content: bytes
    content_type: str
    traceparent: str
    def __init__(self, key: _Optional[str] = ..., operationType: _Optional[_Union[PutDel, str]] = ..., content: _Optional[bytes] = ..., content_type: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class DataChangeReply(_message.Message):
    __slots__ = ("key", "operationType", "result", "error_text", "absent", "reasons", "permanent", "retry_after", "revision")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OPERATIONTYPE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_TEXT_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    key: str
    operationType: PutDel
    result: int
    error_text: str
    absent: bool
    reasons: _containers.RepeatedCompositeFieldContainer[Reason]
    permanent: bool
    retry_after: float
    revision: int
    def __init__(self, key: _Optional[str] = ..., operationType: _Optional[_Union[PutDel, str]] = ..., result: _Optional[int] = ..., error_text: _Optional[str] = ..., absent: bool = ..., reasons: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., permanent: bool = ..., retry_after: _Optional[float] = ..., revision: _Optional[int] = ...) -> None: ...

class Reason(_message.Message):
    __slots__ = ("resync_name", "key", "text")
    RESYNC_NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    resync_name: str
    key: str
    text: str
    def __init__(self, resync_name: _Optional[str] = ..., key: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class DataChangesReplies(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[DataChangeReply]
    def __init__(self, replies: _Optional[_Iterable[_Union[DataChangeReply, _Mapping]]] = ...) -> None: ...

class DataResyncRequest(_message.Message):
    __slots__ = ("key", "content", "content_type")
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    key: str
    content: bytes
    content_type: str
    def __init__(self, key: _Optional[str] = ..., content: _Optional[bytes] = ..., content_type: _Optional[str] = ...) -> None: ...

class DataResyncReply(_message.Message):
    __slots__ = ("resyncId", "key", "result", "error_text")
    RESYNCID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_TEXT_FIELD_NUMBER: _ClassVar[int]
    resyncId: Seq
    key: str
    result: int
    error_text: str
    def __init__(self, resyncId: _Optional[_Union[Seq, _Mapping]] = ..., key: _Optional[str] = ..., result: _Optional[int] = ..., error_text: _Optional[str] = ...) -> None: ...

class DataResyncsReplies(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[DataResyncReply]
    def __init__(self, replies: _Optional[_Iterable[_Union[DataResyncReply, _Mapping]]] = ...) -> None: ...

class DataResyncRequests(_message.Message):
    __slots__ = ("msgId", "dataResyncs")
    MSGID_FIELD_NUMBER: _ClassVar[int]
    DATARESYNCS_FIELD_NUMBER: _ClassVar[int]
    msgId: Seq
    dataResyncs: _containers.RepeatedCompositeFieldContainer[DataResyncRequest]
    def __init__(self, msgId: _Optional[_Union[Seq, _Mapping]] = ..., dataResyncs: _Optional[_Iterable[_Union[DataResyncRequest, _Mapping]]] = ...) -> None: ...

class DataResyncReplies(_message.Message):
    __slots__ = ("msgId", "error", "dataResyncs", "result", "reasons", "permanent", "retry_after", "revision")
    MSGID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DATARESYNCS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    msgId: Seq
    error: Error
    dataResyncs: DataResyncsReplies
    result: int
    reasons: _containers.RepeatedCompositeFieldContainer[Reason]
    permanent: bool
    retry_after: float
    revision: int
    def __init__(self, msgId: _Optional[_Union[Seq, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., dataResyncs: _Optional[_Union[DataResyncsReplies, _Mapping]] = ..., result: _Optional[int] = ..., reasons: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., permanent: bool = ..., retry_after: _Optional[float] = ..., revision: _Optional[int] = ...) -> None: ...

class DataMsgRequest(_message.Message):
    __slots__ = ("msgId", "txn", "dataChanges", "dataResyncs")
    MSGID_FIELD_NUMBER: _ClassVar[int]
    TXN_FIELD_NUMBER: _ClassVar[int]
    DATACHANGES_FIELD_NUMBER: _ClassVar[int]
    DATARESYNCS_FIELD_NUMBER: _ClassVar[int]
    msgId: Seq
    txn: Seq
    dataChanges: _containers.RepeatedCompositeFieldContainer[DataChangeRequest]
    dataResyncs: _containers.RepeatedCompositeFieldContainer[DataResyncRequest]
    def __init__(self, msgId: _Optional[_Union[Seq, _Mapping]] = ..., txn: _Optional[_Union[Seq, _Mapping]] = ..., dataChanges: _Optional[_Iterable[_Union[DataChangeRequest, _Mapping]]] = ..., dataResyncs: _Optional[_Iterable[_Union[DataResyncRequest, _Mapping]]] = ...) -> None: ...

class DataMsgReply(_message.Message):
    __slots__ = ("msgId", "error", "dataChanges", "dataResyncs")
    MSGID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DATACHANGES_FIELD_NUMBER: _ClassVar[int]
    DATARESYNCS_FIELD_NUMBER: _ClassVar[int]
    msgId: Seq
    error: Error
    dataChanges: DataChangesReplies
    dataResyncs: DataResyncsReplies
    def __init__(self, msgId: _Optional[_Union[Seq, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., dataChanges: _Optional[_Union[DataChangesReplies, _Mapping]] = ..., dataResyncs: _Optional[_Union[DataResyncsReplies, _Mapping]] = ...) -> None: ...

class ResyncNeededCallback(_message.Message):
    __slots__ = ("msgId", "error")
    MSGID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    msgId: Seq
    error: Error
    def __init__(self, msgId: _Optional[_Union[Seq, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class PingRequest(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class PingReply(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...
