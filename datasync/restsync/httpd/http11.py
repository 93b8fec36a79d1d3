"""HTTP/1.1 for the server: strict, and bounded in size and time.

The parser of the standard library has no time limit for a whole head. It also accepts requests whose end a proxy may
place elsewhere, which allows request smuggling. This module reads one head, streams the body, and writes one response.
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
#: Header lines of a request.
MAX_HEADERS = 100
#: Bytes of an unread body that the server reads to keep the connection open.
MAX_DRAIN = 64 * 1024
#: Bytes of one read or write; more than a TLS record has.
CHUNK = 64 * 1024
#: Milliseconds: the longest timeout of poll().
MAX_WAIT = 2**31 - 1

T = TypeVar("T")

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_FIELD = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
#: The size of a chunk, and extensions, which are ignored. Nothing around the size: a proxy may read it as another one.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")


class BadRequest(Exception):
    """A malformed, oversized or slow request. The connection closes after a response with *status*."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class PeerGone(Exception):
    """The client has disconnected, or is too slow."""


class RequestHead(NamedTuple):
    """The request line and the headers of a request."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        """Return the header *name* (in lower case), with repeated lines joined; None without one."""
        found = [value for other, value in self.headers if other == name]
        return ", ".join(found) if found else None

    def __repr__(self) -> str:
        return f"<{self.method} {self.target!r}>"  # without headers: one has the token


class BufferedSocket:
    """A socket with a read buffer and a deadline for every read. Threads: one."""

    def __init__(self, connection: socket.socket, read_timeout: float, write_timeout: float) -> None:
        self._connection = connection
        self._read_timeout = read_timeout
        self._write_timeout = write_timeout
        self._buffer = bytearray()
        # A socket with a timeout makes three system calls of each read and write, and the thread has to take the
        # interpreter's lock again after each. This class waits only when there is something to wait for.
        connection.setblocking(False)
        self._poll = select.poll()

    def read_head(self, idle: float) -> RequestHead | None:
        """Return the next request; None when the client disconnects first, or sends nothing for *idle* seconds.

        After the first byte, the rest must arrive within the read timeout. Raises ``BadRequest`` or ``PeerGone``.
        """
        try:
            if not self._buffer and not self._receive(time.monotonic() + idle):
                return None
        except PeerGone:
            return None
        deadline = time.monotonic() + self._read_timeout
        searched = 0
        while (end := self._buffer.find(b"\r\n\r\n", searched)) < 0:
            if len(self._buffer) > MAX_HEAD:
                break
            searched = max(0, len(self._buffer) - 3)
            if not self._receive(deadline, slow=408):
                raise PeerGone("the connection ended within a request head")
        if end < 0 or end > MAX_HEAD:
            raise BadRequest(431 if b"\r\n" in self._buffer else 414, f"a head has more than {MAX_HEAD} bytes")
        text = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return _parse(text.lstrip(b"\r\n"))

    def read(self, size: int, deadline: float) -> bytes:
        """Return 1 to *size* bytes; none at the end."""
        if not self._buffer:
            self._receive(deadline, slow=408)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def read_line(self, limit: int, deadline: float) -> bytes:
        """Return a line without its end, which is CRLF: a proxy may read another line where one ends with LF."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > limit or not self._receive(deadline, slow=408):
                raise BadRequest(400, "a chunk is malformed")
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        if not line.endswith(b"\r\n"):
            raise BadRequest(400, "a line of a chunked body ends without CR")
        return line[:-2]

    def write(self, data: bytes) -> None:
        """Send all of *data*. Raises ``PeerGone`` when the client accepts no byte within the write timeout."""
        try:
            # The timeout is for each chunk: a client that reads slowly is not one that has stopped reading.
            view = memoryview(data)
            for begin in range(0, len(view), CHUNK):
                chunk = view[begin : begin + CHUNK]
                deadline = time.monotonic() + self._write_timeout
                while chunk:
                    chunk = chunk[self._attempt(partial(self._connection.send, chunk), select.POLLOUT, deadline) :]
        except (OSError, ValueError) as error:
            raise PeerGone("the client accepts no data") from error

    def _receive(self, deadline: float, *, slow: int = 0) -> bool:
        try:
            # A TLS record is smaller than a chunk: the last read left no data that poll() does not see.
            self._wait(select.POLLIN, deadline)
            data = self._attempt(partial(self._connection.recv, CHUNK), select.POLLIN, deadline)
        except TimeoutError:
            if slow:
                raise BadRequest(slow, "the request took too long") from None
            raise PeerGone("the client sent nothing") from None
        except (OSError, ValueError) as error:
            raise PeerGone("the connection was lost") from error
        self._buffer += data
        return bool(data)

    def _attempt(self, act: Callable[[], T], way: int, deadline: float) -> T:
        """Call *act* until it would no longer block. Raises ``TimeoutError`` after *deadline*."""
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
    """The body of one request as ``wsgi.input``; reads end where the body ends."""

    def __init__(self, stream: BufferedSocket, head: RequestHead, seconds: float) -> None:
        self._stream = stream
        self._deadline = time.monotonic() + seconds
        self._chunked, self._left = _framing(head)
        self._finished = not self._chunked and not self._left
        expects = head.version != "HTTP/1.0" and (head.get("expect") or "").lower() == "100-continue"
        self._continue = not self._finished and expects
        #: Reason why the body could not be read to its end; the connection must close then.
        self.failure: BadRequest | PeerGone | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._finished:
            return 0
        try:
            if self._continue:
                self._continue = False
                self._stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self._chunked and not self._left and not self._next_chunk():
                return 0
            data = self._stream.read(min(len(buffer), self._left), self._deadline)
            buffer[: len(data)] = data
            self._left -= len(data)
            if not data:
                raise PeerGone("the body ended early")
            if self._chunked and not self._left:
                if self._stream.read_line(2, self._deadline):
                    raise BadRequest(400, "a chunk is longer than its size")
            elif not self._left:
                self._finished = True
        except (BadRequest, PeerGone) as error:
            self.failure, self._finished = error, True
            raise OSError("cannot read the body") from error  # the exception that applications expect
        return len(data)

    @property
    def finished(self) -> bool:
        """True when the whole body was read from the connection."""
        return self._finished and self.failure is None

    @property
    def little_left(self) -> bool:
        """True when the unread part is small enough to read and keep the connection open."""
        return self._finished or not (self._continue or self._chunked or self._left > MAX_DRAIN)

    def drain(self) -> bool:
        """Read the unread part if it is small. Returns False when the connection must close instead."""
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
        line = _CHUNK_LINE.fullmatch(self._stream.read_line(256, self._deadline))
        if line is None:
            raise BadRequest(400, "a chunk has no size")
        self._left = int(line[1], 16)
        if self._left:
            return True
        for _ in range(MAX_HEADERS):  # trailers are checked and ignored
            field = self._stream.read_line(MAX_HEAD, self._deadline)
            if not field:
                self._finished = True
                return False
            _parse_field(field)
        raise BadRequest(431, "too many trailers")


class ResponseWriter:
    """Writes one response; chunked when its length is not known in advance."""

    def __init__(self, stream: BufferedSocket, head: RequestHead, body: BodyReader) -> None:
        self._stream = stream
        self._body = body
        self._http10 = head.version == "HTTP/1.0"
        self._bodiless = head.method == "HEAD"
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._chunked = False
        self.started = False
        #: False: the connection closes after this response.
        self.keep = _keeps(head)

    def start_response(self, status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
        """Take status and headers, as PEP 3333 defines it."""
        if error is not None and self.started:
            raise error[1].with_traceback(error[2])
        self._status, self._headers = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        """Send a chunk of the body."""
        head = b"" if self.started else self._head(None)
        if data and not self._bodiless:
            if self._chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self._stream.write(head + data)
        elif head:
            self._stream.write(head)

    def send(self, chunks: Iterable[bytes]) -> None:
        """Send the whole response. A single chunk is sent with its length."""
        if isinstance(chunks, (list, tuple)) and len(chunks) == 1 and not self.started:
            head = self._head(len(chunks[0]))
            self._stream.write(head if self._bodiless else head + chunks[0])
            return
        for chunk in chunks:
            if chunk:
                self.write(chunk)
        if not self.started:
            self._stream.write(self._head(0))
        elif self._chunked and not self._bodiless:
            self._stream.write(b"0\r\n\r\n")

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
    """Return a whole response for a request that the application never got as a whole, so that nothing was applied.

    The type tells a client that no gateway answers, and so that this is certain.
    """
    code = HTTPStatus(status)
    body = f'{{"type":"urn:datasync:unread","title":"{code.phrase}","status":{status},"detail":"{text}"}}'.encode()
    head = (
        f"HTTP/1.1 {status} {code.phrase}\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nDate: {_date()}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


_dated = (0, "")


def _date() -> str:
    """Return the date header; formatted once per second, because it costs more than the rest of a head."""
    global _dated
    second = int(time.time())
    if _dated[0] != second:
        _dated = (second, formatdate(second, usegmt=True))
    return _dated[1]


def _parse(text: bytes) -> RequestHead:
    line, *rest = text.split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise BadRequest(400, "the request line is malformed")
    method, target, version = (part.decode("ascii") for part in parts)
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(505, "the server supports HTTP/1.1 and HTTP/1.0")
    if len(rest) > MAX_HEADERS:
        raise BadRequest(431, f"the request has more than {MAX_HEADERS} headers")
    headers = []
    for field in rest:
        name, value = _parse_field(field)
        headers.append((name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")))
    head = RequestHead(method, target, version, headers)
    if version == "HTTP/1.1" and sum(name == "host" for name, _ in headers) != 1:
        raise BadRequest(400, "the request must have one Host header")
    _framing(head)
    return head


def _parse_field(line: bytes) -> tuple[bytes, bytes]:
    """Return name and value of a header or a trailer."""
    name, colon, value = line.partition(b":")
    # A space before the colon, a folded line or a control character allows request smuggling.
    if not colon or not _TOKEN.fullmatch(name) or not _FIELD.fullmatch(value):
        raise BadRequest(400, "a header is malformed")
    return name, value


def _framing(head: RequestHead) -> tuple[bool, int]:
    """Return (chunked, length) of the body. Raises ``BadRequest`` when the headers are ambiguous."""
    lengths = [value for name, value in head.headers if name == "content-length"]
    encodings = [value for name, value in head.headers if name == "transfer-encoding"]
    if encodings:
        if lengths or encodings != ["chunked"] or head.version == "HTTP/1.0":
            raise BadRequest(400, "the framing of the body is ambiguous")
        return True, 0
    if not lengths:
        return False, 0
    if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 16):
        raise BadRequest(400, "the length of the body is ambiguous or not a number")
    return False, int(lengths[0])


def _keeps(head: RequestHead) -> bool:
    options = {option.strip().lower() for option in (head.get("connection") or "").split(",")}
    if head.version == "HTTP/1.0":
        return "keep-alive" in options
    return "close" not in options
