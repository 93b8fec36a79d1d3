"""How much a peer may ask for: bounds of one adapter, with the defaults that ``serve`` and ``Client`` share."""

from __future__ import annotations

from dataclasses import dataclass

from datasync.errors import InvalidArgumentError

#: Bytes of one message; gRPC's own default of 4 MiB is too small for the full state of a source.
MAX_MESSAGE_SIZE = 16 * 1024 * 1024
#: Bytes of a key in UTF-8.
MAX_KEY_SIZE = 4096
#: Sources, each with a state of its own.
MAX_SOURCES = 64
#: Keys of one source: a sender that makes up new ones without end must not take all memory.
MAX_KEYS = 1_000_000
#: Requests of one stream that are read and not answered.
WINDOW = 64
#: The same in bytes, so that large values do not multiply.
WINDOW_BYTES = 2 * MAX_MESSAGE_SIZE
#: Seconds without traffic after which the other side is asked whether it is still there.
KEEPALIVE = 10.0
#: Seconds that it may take to answer. Both of grpc's limits are set from it: with one alone a dead peer shows late.
KEEPALIVE_TIMEOUT = 3.0


def channel_options(keepalive: float, keepalive_timeout: float) -> list[tuple[str, int]]:
    """The options of gRPC that servers and clients set alike; times in seconds."""
    return [
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive_timeout * 1000)),
        # With the line above alone, a dead peer shows after more than a minute.
        ("grpc.http2.ping_timeout_ms", int(keepalive_timeout * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        # Identity only: how large a compressed message is shows when it has taken the memory.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an adapter; what goes beyond them is refused, or not read before there is room.

    ``stream_age`` is seconds after which a stream is ended in order: what was read is answered, and the client learns
    how far that was. None for never.
    """

    message_size: int = MAX_MESSAGE_SIZE
    key_size: int = MAX_KEY_SIZE
    sources: int = MAX_SOURCES
    keys: int = MAX_KEYS
    window: int = WINDOW
    window_bytes: int = WINDOW_BYTES
    stream_age: float | None = None

    def __post_init__(self) -> None:
        for name in ("message_size", "key_size", "sources", "keys", "window", "window_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgumentError(f"the limit {name} must be a whole number of 1 or more")
        if self.stream_age is not None and not self.stream_age > 0:
            raise InvalidArgumentError("the limit stream_age must be more than 0 seconds, or None")
