"""Responses of the application, as a WSGI server takes them.

The class of a web framework does far more, and took a third of the time of a whole put.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_STATUS_LINES = {int(status): f"{int(status)} {status.phrase}" for status in HTTPStatus}
_NO_BODY: tuple[bytes, ...] = ()


class Response:
    """Status, headers, and a body: the whole of it, or a stream.

    Args:
      body: Text is sent as UTF-8.
      headers: Names with the case to send, each once.
      on_close: Called once when a stream ends, for whatever reason.
    """

    __slots__ = ("_body", "_on_close", "headers", "status")

    def __init__(
        self,
        body: str | bytes | Iterator[bytes] = b"",
        status: int = 200,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        on_close: Callable[[], object] | None = None,
    ) -> None:
        self.status = status
        self.headers: dict[str, str] = {} if content_type is None else {"Content-Type": content_type}
        if headers:
            self.headers.update(headers)
        self._body = body.encode() if isinstance(body, str) else body
        self._on_close = on_close

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = list(self.headers.items())
        body = self._body
        bodiless = environ["REQUEST_METHOD"] == "HEAD" or self.status == HTTPStatus.NOT_MODIFIED
        if isinstance(body, bytes):
            if self.status != HTTPStatus.NOT_MODIFIED:
                headers.append(("Content-Length", str(len(body))))
            start_response(_STATUS_LINES[self.status], headers)
            return _NO_BODY if bodiless else (body,)
        stream = _ResponseStream(body, self._on_close)
        if bodiless:
            stream.close()
        start_response(_STATUS_LINES[self.status], headers)
        return _NO_BODY if bodiless else stream


class _ResponseStream:
    """The iterable of a streamed body; a WSGI server reads it to its end, or closes it before."""

    def __init__(self, chunks: Iterator[bytes], on_close: Callable[[], object] | None) -> None:
        self._chunks = chunks
        self._on_close = on_close

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        try:
            close = getattr(self._chunks, "close", None)
            if close is not None:
                close()
        finally:
            if on_close is not None:
                on_close()
