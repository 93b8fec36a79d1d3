"""HTTP/1.1 as the server reads and writes it: strict, and bounded in size and in time.

The standard library's parser knows no time limit for a whole head and forgives what lets two servers in a row disagree
on where a request ends. What is here reads one head, gives the body to read, and writes one response.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from io import RawIOBase
from typing import Any, NamedTuple, TypeVar

#: Bytes of a request line with all headers.
MAX_HEAD = 16 * 1024
#: Header lines.
MAX_HEADERS = 100
#: Bytes of a body that nobody wanted, which are read so that the connection can go on.
MAX_DRAIN = 64 * 1024
#: Bytes of one read or write; more than a record of TLS has.
CHUNK = 64 * 1024
#: Milliseconds, as far as a poll can count.
MAX_WAIT = 2**31 - 1

T = TypeVar("T")

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_FIELD = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class BadRequest(Exception):
    """What came is no request that can be answered otherwise; the connection ends after *status*."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Gone(Exception):
    """The peer is no longer there, or too slow."""


class Head(NamedTuple):
    """A request without its body."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        """The header *name* (lower case); lines of the same name are joined."""
        found = [value for other, value in self.headers if other == name]
        return ", ".join(found) if found else None

    def __repr__(self) -> str:
        return f"<{self.method} {self.target!r}>"  # a header has the token


class Wire:
    """One connection, read through a buffer, every read with the time that is left. Threads: its own."""

    def __init__(self, connection: socket.socket, read_timeout: float, write_timeout: float) -> None:
        self._connection = connection
        self._read_timeout = read_timeout
        self._write_timeout = write_timeout
        self._buffer = bytearray()
        # Waiting is ours: with a timeout of the socket's own, each read and write would be three calls of the system,
        # and after each of them the thread has to get the interpreter's lock again.
        connection.setblocking(False)
        self._poll = select.poll()

    def read_head(self, idle: float) -> Head | None:
        """The next request; None when the peer ended the connection in between, or sent nothing for *idle* seconds.

        Once the first byte is there, the rest must come within the read timeout, however it is cut.

        Raises:
          BadRequest, Gone.
        """
        try:
            if not self._buffer and not self._receive(time.monotonic() + idle):
                return None
        except Gone:
            return None
        deadline = time.monotonic() + self._read_timeout
        searched = 0
        while (end := self._buffer.find(b"\r\n\r\n", searched)) < 0:
            if len(self._buffer) > MAX_HEAD:
                break
            searched = max(0, len(self._buffer) - 3)
            if not self._receive(deadline, slow=408):
                raise Gone("the connection ended within a head")
        if end < 0 or end > MAX_HEAD:
            raise BadRequest(431 if b"\r\n" in self._buffer else 414, f"a head may have {MAX_HEAD} bytes")
        text = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return _parse(text.lstrip(b"\r\n"))

    def read(self, size: int, deadline: float) -> bytes:
        """Up to *size* bytes, at least one; empty at the end."""
        if not self._buffer:
            self._receive(deadline, slow=408)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def read_line(self, limit: int, deadline: float) -> bytes:
        """A line without its end."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > limit or not self._receive(deadline, slow=408):
                raise BadRequest(400, "a chunk is malformed")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def write(self, data: bytes) -> None:
        """Send all of *data*; ``Gone`` when the peer takes nothing for the write timeout."""
        try:
            # In pieces: the time is for each, so that who reads slowly is not taken for one who does not read.
            view = memoryview(data)
            for begin in range(0, len(view), CHUNK):
                piece = view[begin : begin + CHUNK]
                deadline = time.monotonic() + self._write_timeout
                while piece:
                    piece = piece[self._attempt(partial(self._connection.send, piece), select.POLLOUT, deadline) :]
        except (OSError, ValueError) as error:
            raise Gone("the peer takes no more") from error

    def _receive(self, deadline: float, *, slow: int = 0) -> bool:
        try:
            # A record of TLS is smaller than a chunk: nothing that a poll does not see is left from the read before.
            self._wait(select.POLLIN, deadline)
            data = self._attempt(partial(self._connection.recv, CHUNK), select.POLLIN, deadline)
        except TimeoutError:
            if slow:
                raise BadRequest(slow, "the request took too long") from None
            raise Gone("nothing came") from None
        except (OSError, ValueError) as error:
            raise Gone("the connection broke") from error
        self._buffer += data
        return bool(data)

    def _attempt(self, act: Callable[[], T], way: int, deadline: float) -> T:
        """Call *act* until it need not wait; ``TimeoutError`` when that is so at *deadline*."""
        while True:
            try:
                return act()
            except BlockingIOError:
                wanted = way
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            self._wait(wanted, deadline)

    def _wait(self, way: int, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        self._poll.register(self._connection, way)
        if remaining <= 0 or not self._poll.poll(min(1000 * remaining, MAX_WAIT)):
            raise TimeoutError


class BodyReader(RawIOBase):
    """The body of one request, as ``wsgi.input``: ends where the body ends, whoever reads."""

    def __init__(self, wire: Wire, head: Head, seconds: float) -> None:
        self._wire = wire
        self._deadline = time.monotonic() + seconds
        self._chunked, self._left = _framing(head)
        self._finished = not self._chunked and not self._left
        expects = head.version != "HTTP/1.0" and (head.get("expect") or "").lower() == "100-continue"
        self._continue = not self._finished and expects
        #: Why the body could not be read to its end; then the connection cannot go on.
        self.failure: BadRequest | Gone | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._finished:
            return 0
        try:
            if self._continue:
                self._continue = False
                self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self._chunked and not self._left and not self._next_chunk():
                return 0
            data = self._wire.read(min(len(buffer), self._left), self._deadline)
            buffer[: len(data)] = data
            self._left -= len(data)
            if not data:
                raise Gone("the body ended early")
            if self._chunked and not self._left:
                if self._wire.read_line(2, self._deadline):
                    raise BadRequest(400, "a chunk is longer than its size")
            elif not self._left:
                self._finished = True
        except (BadRequest, Gone) as error:
            self.failure, self._finished = error, True
            raise OSError("the body cannot be read") from error  # what applications expect of their input
        return len(data)

    @property
    def finished(self) -> bool:
        """True when nothing of it is left on the connection."""
        return self._finished and self.failure is None

    @property
    def little_left(self) -> bool:
        """True when what was not read is so little that the connection can go on after it."""
        return self._finished or not (self._continue or self._chunked or self._left > MAX_DRAIN)

    def drain(self) -> bool:
        """Read what nobody wanted, if it is little; False when the connection must end instead."""
        if not self.little_left:
            return False
        budget = MAX_DRAIN
        try:
            while not self._finished and budget > 0:
                budget -= len(self.read(CHUNK) or b"")
        except OSError:
            return False
        return self.finished

    def _next_chunk(self) -> bool:
        line = self._wire.read_line(256, self._deadline).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", line):
            raise BadRequest(400, "a chunk has no size")
        self._left = int(line, 16)
        if self._left:
            return True
        for _ in range(MAX_HEADERS):  # trailers are read and not used
            if not self._wire.read_line(MAX_HEAD, self._deadline):
                self._finished = True
                return False
        raise BadRequest(431, "too many trailers")


class Responder:
    """Writes one response: ``start_response`` and what follows. Chunked where the length is not told."""

    def __init__(self, wire: Wire, head: Head, body: BodyReader) -> None:
        self._wire = wire
        self._body = body
        self._http10 = head.version == "HTTP/1.0"
        self._bodiless = head.method == "HEAD"
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._chunked = False
        self.started = False
        #: False: the connection ends after this response.
        self.keep = _keeps(head)

    def start_response(self, status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
        """As PEP 3333 has it."""
        if error is not None and self.started:
            raise error[1].with_traceback(error[2])
        self._status, self._headers = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        head = b"" if self.started else self._head(None)
        if data and not self._bodiless:
            if self._chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self._wire.write(head + data)
        elif head:
            self._wire.write(head)

    def send(self, pieces: Iterable[bytes]) -> None:
        """The whole response. The length is told where all is in one piece."""
        if isinstance(pieces, (list, tuple)) and len(pieces) == 1 and not self.started:
            head = self._head(len(pieces[0]))
            self._wire.write(head if self._bodiless else head + pieces[0])
            return
        for piece in pieces:
            if piece:
                self.write(piece)
        if not self.started:
            self._wire.write(self._head(0))
        elif self._chunked and not self._bodiless:
            self._wire.write(b"0\r\n\r\n")

    def _head(self, length: int | None) -> bytes:
        self.started = True
        names = {name.lower() for name, _ in self._headers}
        code = self._status[:3]
        lines = [f"HTTP/1.1 {self._status}"]
        lines += [f"{name}: {value}" for name, value in self._headers if name.lower() != "connection"]
        self.keep = self.keep and self._body.little_left
        if code in ("204", "304") or code[0] == "1":
            self._bodiless = True
        elif "content-length" not in names:
            if length is not None:
                lines.append(f"Content-Length: {length}")
            elif self._http10:
                self.keep = False
            else:
                self._chunked = True
                lines.append("Transfer-Encoding: chunked")
        if "date" not in names:
            lines.append(f"Date: {_date()}")
        if not self.keep:
            lines.append("Connection: close")
        elif self._http10:
            lines.append("Connection: keep-alive")
        text = "\r\n".join(lines)
        return f"{text}\r\n\r\n".encode("latin-1")


def refusal(status: int, text: str) -> bytes:
    """A whole response for what never reached the application."""
    code = HTTPStatus(status)
    body = f'{{"type":"about:blank","title":"{code.phrase}","status":{status},"detail":"{text}"}}'.encode()
    head = (
        f"HTTP/1.1 {status} {code.phrase}\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nDate: {_date()}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


_dated = (0, "")


def _date() -> str:
    """The date of this second; made once a second, for it costs more than the rest of a head."""
    global _dated
    second = int(time.time())
    if _dated[0] != second:
        _dated = (second, formatdate(second, usegmt=True))
    return _dated[1]


def _parse(text: bytes) -> Head:
    line, *rest = text.split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise BadRequest(400, "the request line is malformed")
    method, target, version = (part.decode("ascii") for part in parts)
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(505, "HTTP/1.1 is spoken here")
    if len(rest) > MAX_HEADERS:
        raise BadRequest(431, f"{MAX_HEADERS} headers are allowed")
    headers = []
    for field in rest:
        name, colon, value = field.partition(b":")
        # A space before the colon, a folded line or a control character is how requests are smuggled.
        if not colon or not _TOKEN.fullmatch(name) or not _FIELD.fullmatch(value):
            raise BadRequest(400, "a header is malformed")
        headers.append((name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")))
    head = Head(method, target, version, headers)
    if version == "HTTP/1.1" and sum(name == "host" for name, _ in headers) != 1:
        raise BadRequest(400, "one Host header is needed")
    _framing(head)
    return head


def _framing(head: Head) -> tuple[bool, int]:
    """Whether the body is chunked, else how long it is. Two ways at once, or two lengths, are refused."""
    lengths = [value for name, value in head.headers if name == "content-length"]
    encodings = [value for name, value in head.headers if name == "transfer-encoding"]
    if encodings:
        if lengths or encodings != ["chunked"] or head.version == "HTTP/1.0":
            raise BadRequest(400, "the end of the body is not clear")
        return True, 0
    if not lengths:
        return False, 0
    if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 16):
        raise BadRequest(400, "the length of the body is not clear")
    return False, int(lengths[0])


def _keeps(head: Head) -> bool:
    wishes = {wish.strip().lower() for wish in (head.get("connection") or "").split(",")}
    if head.version == "HTTP/1.0":
        return "keep-alive" in wishes
    return "close" not in wishes
