"""A response, on its way out.

werkzeug's own does far more, and took a third of the time of a whole put for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_STATUS_LINES = {int(status): f"{int(status)} {status.phrase}" for status in HTTPStatus}
#: Bytes of a body that there is none of.
_NOTHING: tuple[bytes, ...] = ()


class Reply:
    """Status, headers, and a body: whole, or a stream that ends some time.

    Args:
      body: Text is sent as UTF-8.
      status: As in HTTP.
      headers: Names as they are to be sent, each once.
      on_close: Called once when a stream is over, however it ends.
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

    def tag(self, tag: str) -> None:
        """Set the entity tag."""
        self.headers["ETag"] = f'"{tag}"'

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = list(self.headers.items())
        body = self._body
        bodiless = environ["REQUEST_METHOD"] == "HEAD" or self.status == HTTPStatus.NOT_MODIFIED
        if isinstance(body, bytes):
            if self.status != HTTPStatus.NOT_MODIFIED:
                headers.append(("Content-Length", str(len(body))))
            start_response(_STATUS_LINES[self.status], headers)
            return _NOTHING if bodiless else (body,)
        stream = _Stream(body, self._on_close)
        if bodiless:
            stream.close()
        start_response(_STATUS_LINES[self.status], headers)
        return _NOTHING if bodiless else stream


class _Stream:
    """What a WSGI server reads to its end, or closes before."""

    def __init__(self, pieces: Iterator[bytes], on_close: Callable[[], object] | None) -> None:
        self._pieces = pieces
        self._on_close = on_close

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        try:
            close = getattr(self._pieces, "close", None)
            if close is not None:
                close()
        finally:
            if on_close is not None:
                on_close()
