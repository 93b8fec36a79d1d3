"""The WSGI application: what is asked of which path, and what it is answered with.

It runs behind ``serve(...)`` or under a path of any other WSGI application. Every answer that is no success is a
problem document; nothing of a body ever reaches a log.

Source: cn-infra ``datasync/restsync``; contract section 5; D47, D48.
"""

from __future__ import annotations

import heapq
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from werkzeug.http import parse_etags

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.errors import ConflictError, DatasyncError, InvalidArgumentError
from datasync.events import Op
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.app.dashboard import PAGE, PAGE_POLICY, Source, overview
from datasync.restsync.app.event_stream import CONTENT_EVENTS, Wanted, event_id, stream_events
from datasync.restsync.app.openapi import document
from datasync.restsync.app.query import number_of, read_query, seconds_of, text_of, truth_of
from datasync.restsync.app.replay_buffer import Answer
from datasync.restsync.encoding import CONTENT_JSON, content_of, item_of, read_changes, read_resync, read_value
from datasync.restsync.keys import check_text, key_of_path
from datasync.restsync.problems import Problem, problem_of
from datasync.restsync.response import Reply
from datasync.runtime.tokens import SCHEME, TokenCheck
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.futures import Outcome, PropagationFuture
from datasync.syncbase.registry import RESYNC_DONE_TIMEOUT

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

#: Bytes that a value may have.
MAX_BODY = 4 * 1024 * 1024
#: Bytes that a full state may have.
MAX_RESYNC = 64 * 1024 * 1024
#: Event streams at once; each holds a thread of the server.
MAX_STREAMS = 512
#: Seconds between two signs of life of a quiet event stream.
HEARTBEAT = 10.0
#: Seconds that a client may ask for instead.
HEARTBEAT_RANGE = (0.1, 60.0)
#: Pairs on a page of the list: unless told, and at most.
PAGE_SIZE = (100, 1000)
#: Attempts at a conditional write that others come in between of.
ATTEMPTS = 100


def wsgi_app(
    adapter: Adapter,
    *,
    token: str | Iterable[str] | None = None,
    page: bool = True,
    show_values: bool = False,
    sources: Sequence[Source] = (),
    max_body: int = MAX_BODY,
    max_resync: int = MAX_RESYNC,
    max_streams: int = MAX_STREAMS,
    heartbeat: float = HEARTBEAT,
    done_timeout: float = DEFAULT_NOTIF_TIMEOUT,
    resync_timeout: float = RESYNC_DONE_TIMEOUT,
) -> Application:
    """The application that feeds and shows *adapter*.

    Args:
      token: What a request must bring as ``Authorization: Bearer``; several while one is being replaced; None: nothing.
      page: Serve the page for people at ``/``.
      show_values: Let the page show values; whoever may read keys can read them in any case.
      sources: Other transports of this process that the page shows as well.
      max_body, max_resync: Bytes of a value, and of a full state.
      max_streams: Event streams at once; more get 503.
      heartbeat: Seconds between two signs of life of a quiet stream.
      done_timeout, resync_timeout: Seconds to wait for the subscribers' answers.

    Raises:
      InvalidArgumentError: An argument cannot be.
    """
    return Application(
        adapter,
        TokenCheck(token),
        page=page,
        show_values=show_values,
        sources=sources,
        max_body=max_body,
        max_resync=max_resync,
        max_streams=max_streams,
        heartbeat=heartbeat,
        done_timeout=done_timeout,
        resync_timeout=resync_timeout,
    )


class Application:
    """A WSGI application; made by ``wsgi_app(...)``. Threads: any."""

    def __init__(
        self,
        adapter: Adapter,
        tokens: TokenCheck,
        *,
        page: bool,
        show_values: bool,
        sources: Sequence[Source],
        max_body: int,
        max_resync: int,
        max_streams: int,
        heartbeat: float,
        done_timeout: float,
        resync_timeout: float,
    ) -> None:
        if not isinstance(adapter, Adapter):
            raise InvalidArgumentError(f"a restsync.Adapter is needed, not {type(adapter).__name__}")
        for name, number in {
            "max_body": max_body,
            "max_resync": max_resync,
            "max_streams": max_streams,
            "heartbeat": heartbeat,
            "done_timeout": done_timeout,
            "resync_timeout": resync_timeout,
        }.items():
            if not isinstance(number, (int, float)) or number <= 0:
                raise InvalidArgumentError(f"{name} must be a number above 0")
        self._adapter = adapter
        self._tokens = tokens
        self._page = page
        self._show_values = show_values
        self._sources = tuple(sources)
        self._max_body = max_body
        self._max_resync = max_resync
        self._max_streams = max_streams
        self._heartbeat = heartbeat
        self._done_timeout = done_timeout
        self._resync_timeout = resync_timeout
        self._started = time.monotonic()
        self._closed = False
        self._lock = threading.Lock()  # guards _streams
        self._streams = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        try:
            response = self._route(environ, path)
        except Problem as problem:
            response = problem.response()
        except DatasyncError as error:
            response = problem_of(error).response()
        except Exception as error:  # a bug: its text may quote a value, so only its place is told
            place = traceback.extract_tb(error.__traceback__)[-1]
            name = type(error).__name__
            log.error("%s %r: %s in %s:%s", method, path, name, place.filename, place.lineno)
            response = problem_of(error).response()
        response.headers.setdefault("Cache-Control", "no-cache")
        response.headers["X-Content-Type-Options"] = "nosniff"
        log.debug("%s %r: %d", method, path, response.status)
        return response(environ, start_response)

    @property
    def guarded(self) -> bool:
        """True when a token is asked for."""
        return self._tokens.required

    @property
    def streams(self) -> int:
        """Event streams that are open."""
        return self._streams

    def close(self) -> None:
        """End the event streams; the adapter stays. A server that is about to end calls it. May be called twice."""
        self._closed = True
        if not self._adapter.guard.forked:
            self._adapter.journal.wake()

    def ended(self) -> bool:
        """True when event streams are to end."""
        return self._closed or self._adapter.closed

    # Which path means what.

    def _route(self, environ: WSGIEnvironment, path: str) -> Reply:
        if path in ("", "/") and self._page:
            return self._serve_page(environ, path)
        if path == "/openapi.json":
            return _only(environ, GET=lambda: _json_text(json.dumps(document(_mounted_at(environ) or "/"))))
        check_authorized(self._tokens, environ)
        self._adapter.guard.check()
        if self._adapter.closed and path != "/status":  # what it still holds is nobody's state any more
            raise Problem("closed", "the adapter is closed", headers={"Retry-After": "2"})
        if path == "/keys":
            return _only(
                environ,
                GET=lambda: self._list(environ),
                PUT=lambda: self._resync(environ),
                PATCH=lambda: self._transaction(environ),
            )
        if path.startswith("/keys/"):
            return self._one_key(environ, path.removeprefix("/keys/"))
        if path == "/events":
            return _only(environ, GET=lambda: self._events(environ))
        if path == "/status" and self._page:
            return _only(environ, GET=lambda: self._status(environ))
        raise Problem("not-found", "look at /openapi.json for what is here")

    def _one_key(self, environ: WSGIEnvironment, path: str) -> Reply:
        # The method first: 405 is true whatever the key.
        return _only(
            environ,
            GET=lambda: self._get(environ, key_of_path(path)),
            PUT=lambda: self._put(environ, key_of_path(path)),
            DELETE=lambda: self._delete(environ, key_of_path(path)),
        )

    # One key.

    def _get(self, environ: WSGIEnvironment, key: str) -> Reply:
        read_query(environ)
        pair = self._adapter.registry.get(key)
        if pair is None:
            raise Problem("no-such-key", f"there is no {key!r}")
        content, content_type = content_of(pair)
        return self._tagged(environ, pair.revision, Reply(content, 200, content_type))

    def _put(self, environ: WSGIEnvironment, key: str) -> Reply:
        read_query(environ)
        body = read_value(environ, key, self._max_body)
        created = self._adapter.registry.get(key) is None
        outcome = self._commit(environ, key, body)
        response = _json_text(_written(key, outcome), 201 if created else 200)
        response.tag(event_id(self._adapter, outcome.revision))
        return response

    def _delete(self, environ: WSGIEnvironment, key: str) -> Reply:
        read_query(environ)
        if self._adapter.registry.get(key) is None and not environ.get("HTTP_IF_MATCH"):
            raise Problem("no-such-key", f"there is no {key!r}")
        outcome = self._commit(environ, key, ChangeBytes(key, op=Op.DELETE))
        if key in outcome.ignored:
            raise Problem("no-such-key", f"there is no {key!r}")
        return _json_text(_written(key, outcome))

    def _commit(self, environ: WSGIEnvironment, key: str, change: ChangeBytes) -> Outcome:
        registry = self._adapter.registry

        def submit() -> PropagationFuture:
            for _ in range(ATTEMPTS):
                expected = self._expected(environ, key)
                try:
                    return registry.submit_changes(
                        {key: change}, timeout=self._done_timeout, expected=expected, only_watched=True
                    )
                except ConflictError:
                    continue  # another write came between: look at the condition again
            raise Problem("overloaded", f"{key!r} changes too often", headers={"Retry-After": "1"})

        return self._answered(change.get_change_type().value, key, submit)

    def _expected(self, environ: WSGIEnvironment, key: str) -> Mapping[str, int] | None:
        """The revision that *key* must still have when the change is applied; None where no condition is made."""
        match, none_match = environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH")
        if match is None and none_match is None:
            return None
        pair = self._adapter.registry.get(key)
        revision = 0 if pair is None else pair.revision
        tag = event_id(self._adapter, revision)
        if match is not None and (pair is None or not parse_etags(match).contains(tag)):
            raise Problem("conflict", f"{key!r} {_now(pair is None)}", headers=_tag_header(pair and tag))
        if none_match is not None and pair is not None and parse_etags(none_match).contains_weak(tag):
            raise Problem("conflict", f"{key!r} {_now(False)}", headers=_tag_header(tag))
        return {key: revision}

    # All keys.

    def _list(self, environ: WSGIEnvironment) -> Reply:
        arguments = read_query(environ, "prefix", "after", "limit", "values")
        prefix, after = text_of(arguments, "prefix"), text_of(arguments, "after")
        limit = number_of(arguments, "limit", PAGE_SIZE[0], 1, PAGE_SIZE[1])
        values = truth_of(arguments, "values", True)
        revision, pairs = self._adapter.registry.snapshot(prefix)
        page = heapq.nsmallest(limit + 1, (pair for pair in pairs if pair.key > after), key=lambda pair: pair.key)
        items = ",".join(item_of(pair.key, pair.revision, pair.value, values=values) for pair in page[:limit])
        following = json.dumps(page[limit - 1].key) if len(page) > limit else "null"
        text = f'{{"revision":{revision},"items":[{items}],"next":{following}}}'
        return self._tagged(environ, revision, _json_text(text))

    def _transaction(self, environ: WSGIEnvironment) -> Reply:
        read_query(environ)
        _unconditional(environ)
        changes = read_changes(environ, self._max_resync)
        registry = self._adapter.registry
        outcome = self._answered(
            "Transaction",
            f"{len(changes)} key(s) from {next(iter(changes), '')} on",
            lambda: registry.submit_changes(changes, timeout=self._done_timeout, only_watched=True),
        )
        return _json_text(json.dumps({"revision": outcome.revision, "ignored": list(outcome.ignored)}))

    def _resync(self, environ: WSGIEnvironment) -> Reply:
        read_query(environ)
        _unconditional(environ)
        values = read_resync(environ, self._max_resync)
        registry = self._adapter.registry
        outcome = self._answered(
            "Resync", f"{len(values)} key(s)", lambda: registry.submit_resync(values, timeout=self._resync_timeout)
        )
        return _json_text(json.dumps({"revision": outcome.revision, "keys": len(values)}))

    def _events(self, environ: WSGIEnvironment) -> Reply:
        arguments = read_query(environ, "prefix", "follow", "heartbeat", several="prefix")
        prefixes = tuple(arguments.get("prefix", [""]))
        for prefix in prefixes:
            check_text(prefix, "a prefix")
        heartbeat = seconds_of(arguments, "heartbeat", self._heartbeat, *HEARTBEAT_RANGE)
        last_id = environ.get("HTTP_LAST_EVENT_ID", "")
        wanted = Wanted(prefixes, last_id, truth_of(arguments, "follow", True), heartbeat)
        with self._lock:
            full = self._streams >= self._max_streams
            self._streams += not full
        if full:
            detail = f"there are {self._max_streams} event streams already"
            raise Problem("overloaded", detail, headers={"Retry-After": "5"})
        # Our own server knows when a peer has gone; elsewhere the next heartbeat finds out.
        gone: Callable[[], bool] = environ.get("datasync.peer_gone", bool)
        stream = stream_events(self._adapter, wanted, lambda: self.ended() or gone())
        # The second is for nginx, which would else collect events.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Reply(stream, 200, CONTENT_EVENTS, headers, on_close=self._stream_over)

    def _stream_over(self) -> None:
        with self._lock:
            self._streams -= 1

    # For people.

    def _serve_page(self, environ: WSGIEnvironment, path: str) -> Reply:
        if not path:  # the page's own links need the slash
            location = quote(_mounted_at(environ)) + "/"
            return _only(environ, GET=lambda: Reply(b"", 308, "text/plain", {"Location": location}))
        headers = {"Content-Security-Policy": PAGE_POLICY, "Referrer-Policy": "no-referrer"}
        return _only(environ, GET=lambda: Reply(PAGE, 200, "text/html; charset=utf-8", headers))

    def _status(self, environ: WSGIEnvironment) -> Reply:
        arguments = read_query(environ, "prefix", "limit")
        shown = overview(
            self._adapter,
            self._sources,
            values=self._show_values,
            prefix=text_of(arguments, "prefix"),
            limit=number_of(arguments, "limit", 200, 0, PAGE_SIZE[1]),
        )
        shown |= {"streams": self._streams, "uptime": round(time.monotonic() - self._started, 1)}
        return _json_text(json.dumps(shown))

    # What all have in common.

    def _answered(self, op: str, key: str, submit: Callable[[], PropagationFuture]) -> Outcome:
        """Submit, wait for the subscribers, and note what became of it."""
        began = time.monotonic()
        status, detail, revision = 500, "", 0
        try:
            outcome = submit().result()
            status, revision = 200, outcome.revision
            return outcome
        except DatasyncError as error:
            problem = problem_of(error)
            status, detail = problem.status, problem.detail
            raise problem from error
        except Problem as problem:
            status, detail = problem.status, problem.detail
            raise
        finally:
            seconds = time.monotonic() - began
            self._adapter.journal.remember(Answer(time.time(), op, key, revision, status, detail, seconds))

    def _tagged(self, environ: WSGIEnvironment, revision: int, response: Reply) -> Reply:
        """*response* with its entity tag, or 304 where the client has it already."""
        tag = event_id(self._adapter, revision)
        known = environ.get("HTTP_IF_NONE_MATCH")
        if known is not None and parse_etags(known).contains_weak(tag):
            response = Reply(status=304)
        response.tag(tag)
        return response


def check_authorized(tokens: TokenCheck, environ: WSGIEnvironment) -> None:
    """Raise ``Problem`` (401) unless the request carries one of *tokens*."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    offered = token.strip() if scheme.lower() == SCHEME.lower() else ""
    if not tokens.accepts(offered):
        detail = "the token is not accepted" if offered else "send the header Authorization: Bearer TOKEN"
        raise Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="datasync"'})


def _only(environ: WSGIEnvironment, **handlers: Callable[[], Reply]) -> Reply:
    """Call the handler of the request's method; HEAD is GET without the body."""
    method = environ["REQUEST_METHOD"].upper()
    handler = handlers.get("GET" if method == "HEAD" else method)
    if handler is None:
        allowed = ", ".join(["HEAD", *handlers] if "GET" in handlers else handlers)
        detail = f"{method} cannot be done here, {allowed} can"
        raise Problem("method-not-allowed", detail, headers={"Allow": allowed})
    return handler()


def _mounted_at(environ: WSGIEnvironment) -> str:
    """The path under which another application has this one; empty where it stands alone."""
    path: str = environ.get("SCRIPT_NAME", "")
    return path.encode("latin-1").decode(errors="replace").rstrip("/")


def _unconditional(environ: WSGIEnvironment) -> None:
    if environ.get("HTTP_IF_MATCH") or environ.get("HTTP_IF_NONE_MATCH"):
        raise Problem("bad-request", "conditions are for single keys")


def _json_text(text: str, status: int = 200) -> Reply:
    return Reply(text, status, CONTENT_JSON)


def _written(key: str, outcome: Outcome) -> str:
    return f'{{"key":{json.dumps(key)},"revision":{outcome.revision}}}'


def _now(absent: bool) -> str:
    return "is not there" if absent else "is at another revision, see ETag"


def _tag_header(tag: str | None) -> dict[str, str]:
    return {"ETag": f'"{tag}"'} if tag else {}
