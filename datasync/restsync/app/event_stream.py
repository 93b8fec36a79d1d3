"""The event stream (``text/event-stream``): a snapshot, then every transaction; ``Last-Event-ID`` resumes it.

    event: resync   {"revision": 7, "reason": "initial"}     the following replaces everything known
    event: items    [{"key": …, "revision": …, "value": …}]  a part of the snapshot; as many as it takes
    event: synced   {"revision": 7, "keys": 2}               the snapshot is complete; the first event with an id
    event: change   {"revision": 8, "changes": [...]}        one transaction, never split

An id names a revision of one incarnation of the server. Every heartbeat carries one too, so that a quiet prefix can
resume however many changes other prefixes had. Nothing is queued for a stream: it reads the replay buffer whenever its
client has taken what was sent, and starts over with a snapshot when it has fallen behind the buffer.

Source: contract C2-C4, C8.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from datasync.events import ResyncReason
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.encoding import item_of

#: Characters of one ``items`` event.
FRAGMENT = 64 * 1024
#: Seconds between checks for a disconnected client while a stream is quiet.
CHECK_INTERVAL = 1.0
#: Transactions that one write sends.
BURST = 200


class StreamRequest(NamedTuple):
    """Parameters of one stream; *heartbeat* in seconds."""

    prefixes: tuple[str, ...]
    last_id: str
    follow: bool
    heartbeat: float


def stream_events(adapter: Adapter, request: StreamRequest, ended: Callable[[], bool]) -> Iterator[bytes]:
    """Yield the stream. It ends when *ended* returns True, or, without ``follow``, when it has caught up."""
    instance = adapter.instance
    position, reason = _resume(adapter, instance, request.last_id)
    replay_buffer = adapter.replay_buffer
    # The first bytes at once, so that a proxy passes the headers on.
    yield b": datasync\nretry: 1000\n\n"
    sent_at = time.monotonic()
    # A resumed client that missed nothing must learn at once that it is in sync.
    heartbeat_due = reason is None
    while not ended():
        if reason is None and adapter.instance != instance:
            reason = ResyncReason.REWOUND
        if reason is not None:
            instance = adapter.instance  # before the snapshot: a rewind after it is found above
            position = yield from _snapshot(adapter, instance, request, reason)
            reason = None
            if not request.follow:
                return
        transactions = replay_buffer.after(position)
        if transactions is None:
            reason = ResyncReason.OVERFLOW
            continue
        if not transactions:
            if not request.follow:
                return
            if heartbeat_due:
                heartbeat_due = False
                yield _heartbeat(instance, position)
            replay_buffer.wait(position, min(request.heartbeat, CHECK_INTERVAL), ended)
            if time.monotonic() - sent_at >= request.heartbeat and not ended():
                sent_at = time.monotonic()
                yield _heartbeat(instance, position)
            continue
        texts = []
        for transaction in transactions[:BURST]:
            if transaction.changes is None:
                reason = ResyncReason.REQUESTED
                break
            position = transaction.revision
            if text := transaction.text(request.prefixes):
                texts.append(_event("change", text, event_id(instance, position)))
        if texts:
            heartbeat_due = False
            sent_at = time.monotonic()
            yield "".join(texts).encode()


def _heartbeat(instance: str, position: int) -> bytes:
    """Return a heartbeat that carries the position of the stream."""
    return f"id: {event_id(instance, position)}\n: heartbeat\n\n".encode()


def event_id(instance: str, revision: int) -> str:
    """Return the id that names *revision* of the adapter's *instance* in ``Last-Event-ID``."""
    return f"{instance}-{revision}"


def _resume(adapter: Adapter, instance: str, last_id: str) -> tuple[int, ResyncReason | None]:
    """Return the position to continue from, and the reason when a snapshot is needed instead."""
    if not last_id:
        return 0, ResyncReason.INITIAL
    named, _, number = last_id.rpartition("-")
    if named != instance or not (number.isascii() and number.isdigit() and len(number) < 20):
        return 0, ResyncReason.REWOUND  # of another incarnation of this server, whose state is lost
    position = int(number)
    known = position <= adapter.registry.revision and adapter.replay_buffer.after(position) is not None
    return position, None if known else ResyncReason.COMPACTED


def _snapshot(
    adapter: Adapter, instance: str, request: StreamRequest, reason: ResyncReason
) -> Generator[bytes, None, int]:
    """Yield the state under the prefixes, and return its revision."""
    revision, pairs = adapter.registry.snapshot()
    yield _event("resync", f'{{"revision":{revision},"reason":"{reason.value}"}}').encode()
    items: list[str] = []
    size = keys = 0
    for pair in pairs:
        if not pair.key.startswith(request.prefixes):
            continue
        text = item_of(pair.key, pair.revision, pair.payload)
        items.append(text)
        size += len(text)
        keys += 1
        if size > FRAGMENT:
            yield _event("items", f"[{','.join(items)}]").encode()
            items, size = [], 0
    if items:
        yield _event("items", f"[{','.join(items)}]").encode()
    yield _event("synced", f'{{"revision":{revision},"keys":{keys}}}', event_id(instance, revision)).encode()
    return revision


def _event(name: str, data: str, identity: str = "") -> str:
    # JSON has no line end inside a string, so a value with line ends of its own may be split at them.
    lines = data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
    head = f"id: {identity}\n" if identity else ""
    return f"{head}event: {name}\ndata: {lines}\n\n"
