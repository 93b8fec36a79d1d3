"""Limits of one adapter, and the defaults that ``serve`` and ``Client`` share."""

from __future__ import annotations

from dataclasses import dataclass

from datasync.errors import InvalidArgumentError
from datasync.runtime.timeouts import check_seconds

#: Bytes per message. gRPC's default of 4 MiB is too small for the full state of a source.
MAX_MESSAGE_SIZE = 16 * 1024 * 1024
#: Bytes per key, in UTF-8.
MAX_KEY_SIZE = 4096
#: Sources per adapter; each has its own state.
MAX_SOURCES = 64
#: Keys per source, so that a sender that keeps adding keys cannot use up the memory.
MAX_KEYS = 1_000_000
#: Unanswered requests per stream.
WINDOW = 64
#: Bytes of unanswered requests per stream, so that many large values do not add up.
WINDOW_BYTES = 2 * MAX_MESSAGE_SIZE
#: Seconds without traffic before a keepalive ping.
KEEPALIVE = 10.0
#: Seconds to wait for the response to a keepalive ping.
KEEPALIVE_TIMEOUT = 3.0


def channel_options(keepalive: float, keepalive_timeout: float) -> list[tuple[str, int]]:
    """Return the channel options that servers and clients share. Both times are in seconds."""
    return [
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive_timeout * 1000)),
        # With the option above alone, gRPC takes more than a minute to detect a dead peer.
        ("grpc.http2.ping_timeout_ms", int(keepalive_timeout * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        # Identity only: the size of a compressed message is known only after it has used the memory.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an adapter. It rejects what exceeds them, or stops reading until there is room.

    Sizes are in bytes, and ``keys`` is per source. ``window`` and ``window_bytes`` limit the unanswered requests of a
    stream. ``stream_age`` is the number of seconds after which the server ends a stream gracefully: it replies to the
    requests that it read, and reports their number to the client. None means no limit.

    Raises ``InvalidArgumentError`` for a limit that is not a positive number.
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
                raise InvalidArgumentError(f"the limit {name} must be an integer of 1 or more")
        if self.stream_age is not None:
            check_seconds("the limit stream_age", self.stream_age)
