"""The live stream: ``text/event-stream``, a snapshot first, then each transaction, resumed by ``Last-Event-ID``.

    event: resync   {"revision": 7, "reason": "initial"}     what follows replaces all that was known
    event: items    [{"key": …, "revision": …, "value": …}]  a part of it; as many as it takes
    event: synced   {"revision": 7, "keys": 2}               complete; the first event with an id
    event: change   {"revision": 8, "changes": [...]}        one transaction, never torn

An id names a revision of one life of the server. Every heartbeat carries one as well, so that a quiet prefix can be
resumed however busy the others were. Nothing is queued for a stream: it reads the journal when its peer takes what
was sent, and starts over with a snapshot when it has fallen out of it.

Source: contract section 5, C2-C4, C8.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from datasync.events import ResyncReason
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.encoding import item_of

#: Characters after which a piece of a snapshot is sent.
PIECE = 64 * 1024
#: Seconds after which a quiet stream looks whether its peer is still there.
LOOK_UP = 1.0
#: Transactions that are sent at once.
BURST = 200
CONTENT_EVENTS = "text/event-stream"


class Wanted(NamedTuple):
    """What one stream is to carry."""

    prefixes: tuple[str, ...]
    last_id: str
    follow: bool
    heartbeat: float


def stream_events(adapter: Adapter, wanted: Wanted, ended: Callable[[], bool]) -> Iterator[bytes]:
    """The stream; ends when *ended* says so, or once all there is was sent where it is not to follow."""
    position, reason = _resume(adapter, wanted.last_id)
    journal = adapter.journal
    # Something at once, so that whoever waits for the headers through a proxy gets them.
    yield b": datasync\nretry: 1000\n\n"
    spoken = time.monotonic()
    owed = reason is None  # who resumes may have missed nothing, and is to know at once that it is in step again
    while not ended():
        if reason is not None:
            position = yield from _snapshot(adapter, wanted, reason)
            reason = None
            if not wanted.follow:
                return
        entries = journal.after(position)
        if entries is None:
            reason = ResyncReason.OVERFLOW
            continue
        if not entries:
            if not wanted.follow:  # resumed, and nothing more has come
                return
            if owed:
                owed = False
                yield _heartbeat(adapter, position)
            journal.wait(position, min(wanted.heartbeat, LOOK_UP), ended)
            if time.monotonic() - spoken >= wanted.heartbeat and not ended():
                spoken = time.monotonic()
                yield _heartbeat(adapter, position)
            continue
        texts = []
        for entry in entries[:BURST]:
            if entry.changes is None:
                reason = ResyncReason.REQUESTED
                break
            position = entry.revision
            if text := entry.text(wanted.prefixes):
                texts.append(_event("change", text, event_id(adapter, position)))
        if texts:
            owed = False
            spoken = time.monotonic()
            yield "".join(texts).encode()


def _heartbeat(adapter: Adapter, position: int) -> bytes:
    """A sign of life that says how far the stream is."""
    return f"id: {event_id(adapter, position)}\n: heartbeat\n\n".encode()


def event_id(adapter: Adapter, revision: int) -> str:
    """What ``Last-Event-ID`` will name *revision* by; entity tags are the same in quotes."""
    return f"{adapter.instance}-{revision}"


def _resume(adapter: Adapter, last_id: str) -> tuple[int, ResyncReason | None]:
    """Where to go on, or why that cannot be."""
    if not last_id:
        return 0, ResyncReason.INITIAL
    instance, _, number = last_id.rpartition("-")
    if instance != adapter.instance or not (number.isascii() and number.isdigit() and len(number) < 20):
        return 0, ResyncReason.REWOUND  # of another life of this server, whose state is lost
    position = int(number)
    return position, ResyncReason.COMPACTED if adapter.journal.after(position) is None else None


def _snapshot(adapter: Adapter, wanted: Wanted, reason: ResyncReason) -> Generator[bytes, None, int]:
    """The state under the prefixes; returns its revision."""
    revision, pairs = adapter.registry.snapshot()
    yield _event("resync", f'{{"revision":{revision},"reason":"{reason.value}"}}').encode()
    pieces: list[str] = []
    size = keys = 0
    for pair in pairs:
        if not pair.key.startswith(wanted.prefixes):
            continue
        text = item_of(pair.key, pair.revision, pair.value)
        pieces.append(text)
        size += len(text)
        keys += 1
        if size > PIECE:
            yield _event("items", f"[{','.join(pieces)}]").encode()
            pieces, size = [], 0
    if pieces:
        yield _event("items", f"[{','.join(pieces)}]").encode()
    yield _event("synced", f'{{"revision":{revision},"keys":{keys}}}', event_id(adapter, revision)).encode()
    return revision


def _event(name: str, data: str, identity: str = "") -> str:
    # A line of JSON cannot end inside a string, so a value with line ends of its own may be cut at them.
    lines = data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
    head = f"id: {identity}\n" if identity else ""
    return f"{head}event: {name}\ndata: {lines}\n\n"
