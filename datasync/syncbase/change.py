"""Keys with values, as callers pass them in and as subscribers receive them.

A *payload* is the registry's form of a value: bytes, which the registry's serializer decodes on demand, or any object
with ``get_value(message)``. No ``repr`` shows a value.

Source: cn-infra ``datasync/syncbase/change.go``, ``kv_iterator.go``, ``events.go``; contract C6, C16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.message import Message

from datasync.checks import check_key, check_message
from datasync.codecs.api import Codec, decode_value
from datasync.codecs.messages import MessageCodec
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.events import LazyValue, MessageT, Op
from datasync.jsontext import WRONG_TYPE
from datasync.runtime.monitoring import count
from datasync.serializer import Serializer, SerializerJSON, SerializerProto

#: Decodes bytes that came without a serializer.
DEFAULT_SERIALIZER: Serializer = SerializerJSON()

Payload = bytes | LazyValue

#: The highest revision that a change may have. The counter of a registry goes on after it, and revisions are numbers of
#: 64 bits with a sign on the wire: as many are left as a source can use.
MAX_REVISION = 2**62

#: Looked up once: up to Python 3.11 an access to ``Op.PUT`` takes as long as a function call.
PUT, DELETE = Op.PUT, Op.DELETE


class _Keyed:
    """A key and a revision."""

    __slots__ = ("_key", "_revision")

    # Set by the subclasses: a constructor here would cost every change one more call.
    _key: str
    _revision: int

    @property
    def key(self) -> str:
        return self._key

    @property
    def revision(self) -> int:
        return self._revision

    def get_key(self) -> str:
        return self._key

    def get_revision(self) -> int:
        return self._revision

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key!r} revision {self._revision}>"


class KeyVal(_Keyed):
    """A key with a copy of a message. Source: Go ``NewKeyVal``."""

    __slots__ = ("_value",)

    def __init__(self, key: str, value: Message | None, revision: int = 0) -> None:
        if type(key) is not str or not key:  # a transaction has thousands: no call for what is usually right
            check_key(key)
        if type(revision) is not int or not 0 <= revision <= MAX_REVISION:
            check_revision(key, revision)
        self._key = key
        self._value = None if value is None else _copy(value)
        self._revision = revision

    @property
    def message(self) -> Message | None:
        """A copy of the message, for code that forwards it without knowing its type; None for a delete."""
        return None if self._value is None else _copy(self._value)

    @property
    def value(self) -> Message | None:
        """As ``message``."""
        return self.message

    @property
    def raw(self) -> bytes | None:
        """The message as protojson; None for a delete. Raises ``DecodeError`` if it has no such form."""
        return None if self._value is None else payload_bytes(self._key, self, DEFAULT_SERIALIZER)

    @property
    def empty(self) -> bool:
        """True without a value, as for a delete."""
        return self._value is None

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it and return it. Raises ``DecodeError`` when the value is of another type."""
        check_buffer(message)
        if self._value is None:
            message.Clear()
        elif message.DESCRIPTOR is self._value.DESCRIPTOR:
            message.CopyFrom(self._value)  # type: ignore[arg-type]  # the same type, as just checked
        elif message.DESCRIPTOR.full_name == self._value.DESCRIPTOR.full_name:
            # The same type from another pool, which may define it differently.
            SerializerProto().unmarshal(self._value.SerializeToString(), message)
        else:
            text = f"the value of {self._key!r} is a {_name(self._value)}, not a {_name(message)}"
            raise DecodeError(text, kind=WRONG_TYPE)
        return message


class KeyValBytes(_Keyed):
    """A key with bytes, decoded by *serializer* (JSON by default). Source: Go ``NewKeyValBytes``."""

    __slots__ = ("_data", "_serializer")

    def __init__(self, key: str, data: bytes | None, revision: int = 0, serializer: Serializer | None = None) -> None:
        if type(key) is not str or not key:  # as in ``KeyVal``
            check_key(key)
        if data is not None and not isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidArgumentError(f"the value of {key!r} must be bytes, not {type(data).__name__}")
        if type(revision) is not int or not 0 <= revision <= MAX_REVISION:
            check_revision(key, revision)
        self._key = key
        self._data = None if data is None else bytes(data)
        self._revision = revision
        self._serializer = serializer

    @property
    def data(self) -> bytes | None:
        """The original bytes; None for a delete."""
        return self._data

    @property
    def value(self) -> bytes | None:
        """As ``data``."""
        return self._data

    @property
    def raw(self) -> bytes | None:
        """As ``data``."""
        return self._data

    @property
    def serializer(self) -> Serializer | None:
        """The serializer of the bytes; None for that of the registry."""
        return self._serializer

    @property
    def empty(self) -> bool:
        """True without a value, as for a delete."""
        return self._data is None

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it and return it. Raises ``DecodeError`` when the bytes do not match its type."""
        return self.read(message, DEFAULT_SERIALIZER)

    def read(self, message: MessageT, serializer: Serializer) -> MessageT:
        """Like ``get_value``, with *serializer* when the bytes came without one."""
        return read_payload(self._key, self._data, self._serializer or serializer, message)


class Change(KeyVal):
    """A put or delete of a message; a delete has no value. Source: Go ``NewChange``."""

    __slots__ = ("_op",)

    def __init__(self, key: str, value: Message | None = None, revision: int = 0, op: Op = Op.PUT) -> None:
        if op is not PUT or value is None:
            _check_op(key, op, value is None)
        KeyVal.__init__(self, key, None if op is DELETE else value, revision)  # without the object that super() makes
        self._op = op

    def get_change_type(self) -> Op:
        return self._op


class ChangeBytes(KeyValBytes):
    """A put or delete of bytes; a delete has no value. Source: Go ``NewChangeBytes``."""

    __slots__ = ("_op",)

    def __init__(
        self,
        key: str,
        data: bytes | None = None,
        revision: int = 0,
        op: Op = Op.PUT,
        serializer: Serializer | None = None,
    ) -> None:
        if op is not PUT or data is None:
            _check_op(key, op, data is None)
        KeyValBytes.__init__(self, key, None if op is DELETE else data, revision, serializer)
        self._op = op

    def get_change_type(self) -> Op:
        return self._op


class StateKeyVal(NamedTuple):
    """A pair of the registry's state: the immutable item of a RESYNC and of the registry's cache.

    ``payload`` is the original object when the change was made in this process, so that attributes that a caller added
    to it can be read back.
    """

    key: str
    revision: int
    payload: Payload
    serializer: Serializer
    codec: Codec[Any] | None = None

    @property
    def value(self) -> Any:
        """The value, decoded at each access by the codec; without one, the bytes or the message itself.

        Raises ``DecodeError``.
        """
        return payload_value(self.key, self.payload, self.serializer, self.codec)

    @property
    def raw(self) -> bytes:
        """The bytes of the value. Raises ``DecodeError`` for an object of this process that has none."""
        return payload_bytes(self.key, self.payload, self.serializer)

    def raw_for(self, codec: Codec[Any]) -> bytes:
        """Return the bytes of the value as *codec* reads them. Raises ``DecodeError``."""
        return payload_for(self.key, self.payload, self.serializer, codec)

    def get_key(self) -> str:
        return self.key

    def get_revision(self) -> int:
        return self.revision

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it and return it. Raises ``DecodeError`` when the value does not match its type."""
        return read_payload(self.key, self.payload, self.serializer, message)

    def __repr__(self) -> str:
        return f"<KeyVal {self.key!r} revision {self.revision}>"


class ChangeResp(NamedTuple):
    """One change as every subscriber receives it, made once per key and transaction. Source: Go ``ChangeResp``.

    ``payload`` is None for a delete; ``before`` is (revision, payload) of the state just before, None for a create.
    """

    key: str
    op: Op
    revision: int
    payload: Payload | None
    before: tuple[int, Payload] | None
    serializer: Serializer
    codec: Codec[Any] | None = None

    @property
    def value(self) -> Any:
        """The value as in :class:`StateKeyVal`; None for a delete. Raises ``DecodeError``."""
        if self.payload is None:
            return None
        return payload_value(self.key, self.payload, self.serializer, self.codec)

    @property
    def raw(self) -> bytes | None:
        """The bytes of the value; None for a delete. Raises ``DecodeError`` for an object that has none."""
        return None if self.payload is None else payload_bytes(self.key, self.payload, self.serializer)

    def raw_for(self, codec: Codec[Any]) -> bytes | None:
        """Return the bytes of the value as *codec* reads them; None for a delete. Raises ``DecodeError``."""
        return None if self.payload is None else payload_for(self.key, self.payload, self.serializer, codec)

    @property
    def previous(self) -> Any:
        """The value just before, as ``value``; None for a create. Raises ``DecodeError``."""
        if self.before is None:
            return None
        return payload_value(self.key, self.before[1], self.serializer, self.codec)

    @property
    def previous_raw(self) -> bytes | None:
        """The bytes of the previous value; None for a create. Raises ``DecodeError`` for an object that has none."""
        return None if self.before is None else payload_bytes(self.key, self.before[1], self.serializer)

    def get_key(self) -> str:
        return self.key

    def get_revision(self) -> int:
        return self.revision

    def get_change_type(self) -> Op:
        return self.op

    def get_value(self, message: MessageT) -> MessageT:
        """Clear *message*, fill it (a delete leaves it empty) and return it. Raises ``DecodeError``."""
        return read_payload(self.key, self.payload, self.serializer, message)

    def get_prev_value(self, message: Message | None) -> bool:
        """Fill *message* with the previous value; False when there was none. Raises ``DecodeError``."""
        if message is not None:
            before = None if self.before is None else self.before[1]
            read_payload(self.key, before, self.serializer, message)
        return self.before is not None

    def __repr__(self) -> str:
        return f"<ChangeResp {self.op.value} {self.key!r} revision {self.revision}>"


# Made from a tuple of the fields, in a third of the time that a call of the class takes.
new_state_key_val: Callable[[tuple[str, int, Payload, Serializer, Codec[Any] | None]], StateKeyVal]
new_state_key_val = partial(tuple.__new__, StateKeyVal)
new_change_resp: Callable[
    [tuple[str, Op, int, Payload | None, tuple[int, Payload] | None, Serializer, Codec[Any] | None]], ChangeResp
]
new_change_resp = partial(tuple.__new__, ChangeResp)


def read_payload(key: str, payload: Payload | None, serializer: Serializer, message: MessageT) -> MessageT:
    """Clear *message* and fill it from *payload*; None leaves it empty."""
    # The usual case within a process, in half of the time: a class of a caller may read its value in its own way.
    if type(payload) in _COPIED and type(message) is type(payload._value):  # type: ignore[union-attr]
        message.CopyFrom(payload._value)  # type: ignore[union-attr]
        return message
    check_buffer(message)
    if payload is None:
        message.Clear()
        return message
    if isinstance(payload, KeyValBytes):
        return payload.read(message, serializer)
    if not isinstance(payload, bytes):
        return payload.get_value(message)
    try:
        return serializer.unmarshal(payload, message)
    except DecodeError as error:
        failure = error.of(f"the value of {key!r}")
    count("decode_errors")
    raise failure


_COPIED = frozenset((KeyVal, Change))


def payload_bytes(key: str, payload: Payload, serializer: Serializer) -> bytes:
    """Return the bytes of *payload*; *serializer* encodes a message."""
    if isinstance(payload, bytes):
        return payload
    message = payload._value if isinstance(payload, KeyVal) else None
    if message is None:
        data = getattr(payload, "raw", None)
        if isinstance(data, bytes):
            return data
        raise DecodeError(f"the value of {key!r} is a {type(payload).__name__}, which has no bytes", kind=WRONG_TYPE)
    try:
        return serializer.marshal(message)
    except InvalidArgumentError as error:
        reason = str(error)
    raise DecodeError(f"the value of {key!r} has no bytes: {reason}", kind=WRONG_TYPE)


def payload_size(payload: Payload | None) -> int:
    """Return the bytes of *payload*, those of a message in its binary form; 0 for an object of another class."""
    if isinstance(payload, bytes):
        return len(payload)
    if isinstance(payload, KeyValBytes):
        return len(payload._data or b"")
    if isinstance(payload, KeyVal) and payload._value is not None:
        return payload._value.ByteSize()
    return 0


def payload_for(key: str, payload: Payload, serializer: Serializer, codec: Codec[Any]) -> bytes:
    """Return the bytes of *payload* as *codec* reads them.

    A message of this process has no bytes yet, and one of a peer has those of the encoding that the peer chose.
    """
    if isinstance(codec, MessageCodec) and not isinstance(payload, bytes):
        return codec.encode(read_payload(key, payload, codec.serializer, codec.message_type()))
    return payload_bytes(key, payload, serializer)


def payload_value(key: str, payload: Payload, serializer: Serializer, codec: Codec[Any] | None) -> Any:
    """Return the value in *payload*, decoded by *codec* if there is one."""
    if codec is None:
        return payload if isinstance(payload, bytes) else getattr(payload, "value", payload)
    if isinstance(codec, MessageCodec) and not isinstance(payload, bytes):
        # It may be a message, or have a serializer of its own, such as that of a peer.
        return read_payload(key, payload, codec.serializer, codec.message_type())
    return decode_value(key, codec, payload_bytes(key, payload, serializer))


def check_buffer(message: object) -> None:
    """Raise ``InvalidArgumentError`` unless *message* can be filled."""
    if not isinstance(message, Message):
        raise InvalidArgumentError(f"a value is decoded into a protobuf message, not into {type(message).__name__}")


def check_revision(key: str, revision: object) -> None:
    """Raise ``InvalidArgumentError`` unless *revision* is a whole number from 0 to ``MAX_REVISION``."""
    if isinstance(revision, bool) or not isinstance(revision, int) or not 0 <= revision <= MAX_REVISION:
        raise InvalidArgumentError(f"the revision of {key!r} must be a whole number from 0 to 2**62")


def check_payload(key: str, payload: object) -> None:
    """Raise ``InvalidArgumentError`` unless *payload* is a value: bytes, or an object with ``get_value``."""
    if not isinstance(payload, bytes) and not callable(getattr(payload, "get_value", None)):
        hint = "; use delete to remove the key" if payload is None else ""
        raise InvalidArgumentError(f"the value of {key!r} is not bytes or a change: {type(payload).__name__}{hint}")
    if isinstance(payload, (KeyVal, KeyValBytes)) and payload.empty:
        raise InvalidArgumentError(f"{key!r} has no value; leave the key out, or delete it")


def _check_op(key: str, op: Op, empty: bool) -> None:
    if op is not PUT and op is not DELETE:
        raise InvalidArgumentError(f"the change of {key!r} must be Op.PUT or Op.DELETE")
    if op is PUT and empty:
        raise InvalidArgumentError(f"a put of {key!r} needs a value; use Op.DELETE to delete the key")


def _copy(value: Message) -> Message:
    check_message(value)
    copied = type(value)()
    copied.CopyFrom(value)
    return copied


def _name(message: Message) -> str:
    return str(message.DESCRIPTOR.full_name)
