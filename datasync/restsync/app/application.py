"""The WSGI application: the route of each request, and its response.

It runs behind ``serve(...)``, or under a path of any other WSGI application. Every failure is answered with a problem
document. The content of a body never reaches a log.

Source: cn-infra ``datasync/restsync``.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.errors import ConflictError, DatasyncError
from datasync.events import Op
from datasync.metrics.endpoints import PATHS
from datasync.metrics.health import HasStatus, check_max_stale, check_views
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.app.dashboard import PAGE, PAGE_POLICY, Dashboard, MonitoredTransport
from datasync.restsync.app.event_stream import StreamRequest, event_id, stream_events
from datasync.restsync.app.host_check import HostCheck
from datasync.restsync.app.openapi import document
from datasync.restsync.app.probes import probe
from datasync.restsync.app.replay_buffer import RequestRecord
from datasync.restsync.app.requests import (
    check_authorized,
    check_unconditional,
    mounted_at,
    names_tag,
    number_of,
    read_changes,
    read_query,
    read_release,
    read_resync,
    read_value,
    seconds_of,
    tagged,
    text_of,
    trace_of,
    truth_of,
)
from datasync.restsync.app.store_adapter import StoreTransport, adapter_of
from datasync.restsync.arguments import check_numbers
from datasync.restsync.encoding import CONTENT_EVENTS, CONTENT_JSON, content_of, item_of
from datasync.restsync.keys import (
    ESCAPED_ROUTE,
    KEY_HEADER,
    NOT_ACCEPTED_HEADER,
    PLAIN_ROUTE,
    PREFIX_HEADER,
    check_text,
    count_of_keys,
    escape,
    escape_names,
    key_of_path,
)
from datasync.restsync.problems import Problem, problem_of
from datasync.restsync.response import Response
from datasync.runtime.logs import get_logger
from datasync.runtime.tokens import TokenCheck
from datasync.syncbase.change import ChangeBytes, StateKeyVal
from datasync.syncbase.futures import Outcome, PropagationFuture
from datasync.syncbase.registry import RESYNC_DONE_TIMEOUT

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = get_logger(__name__)

#: Bytes of a value.
MAX_BODY = 4 * 1024 * 1024
#: Bytes of a full state.
MAX_RESYNC = 64 * 1024 * 1024
#: Event streams at once; each holds a thread of the server.
MAX_STREAMS = 512
#: Seconds between heartbeats of a quiet event stream.
HEARTBEAT = 10.0
#: Seconds between heartbeats that a client may ask for: the least, and the most.
HEARTBEAT_RANGE = (0.1, 60.0)
#: Pairs on a page of the list: the default, and the most.
PAGE_SIZE = (100, 1000)
#: ``KEY_HEADER`` as WSGI names it.
HTTP_KEY_HEADER = "HTTP_" + KEY_HEADER.upper().replace("-", "_")
#: Attempts at a conditional write while other writes keep changing the key.
ATTEMPTS = 100


class Application:
    """The WSGI application that feeds and shows *adapter*; ``wsgi_app`` is another name for it.

    Args:
      adapter: An adapter, or the plugin of a store, such as ``kvdbsync.Plugin``: its keys are those of the store, for
        all worker processes of a server. It stays open when the application closes.
      token: Token that a request must carry as ``Authorization: Bearer``; several while one is being replaced; None
        accepts every request.
      allowed_hosts: Host names and addresses, without ports, that a request may be addressed to, and whose pages may
        write. None: every host, and pages of the host that they address; ``serve`` then limits a server on loopback
        that has no token.
      page: Serve the dashboard page at ``/``.
      show_values: Show values on the page, of the adapter and of *sources*. A client that may read keys of the adapter
        can read their values in any case.
      sources: Other transports that the page shows too. Without any it shows the keys, not the values, of every
        transport, view and reconciler of this process; with an empty list nothing but the adapter.
      max_body: Bytes of a value.
      max_resync: Bytes of a full state or a transaction.
      max_streams: Event streams at once; one more gets 503.
      heartbeat: Seconds between heartbeats of a quiet event stream.
      done_timeout: Seconds to wait for the subscribers to acknowledge a change.
      resync_timeout: Seconds to wait for the subscribers to acknowledge a full state.
      max_stale: Seconds after which ``/readyz`` says no because a source is lost; None for never.
      views: Views that the process needs: ``/readyz`` opens them, and says no before they were read.

    Raises:
      InvalidArgumentError: An argument is not valid.

    Threads: any.
    """

    def __init__(
        self,
        adapter: Adapter | StoreTransport,
        *,
        token: str | Iterable[str] | None = None,
        allowed_hosts: Iterable[str] | None = None,
        page: bool = True,
        show_values: bool = False,
        sources: Sequence[MonitoredTransport] | None = None,
        max_body: int = MAX_BODY,
        max_resync: int = MAX_RESYNC,
        max_streams: int = MAX_STREAMS,
        heartbeat: float = HEARTBEAT,
        done_timeout: float = DEFAULT_NOTIF_TIMEOUT,
        resync_timeout: float = RESYNC_DONE_TIMEOUT,
        max_stale: float | None = None,
        views: Iterable[HasStatus] = (),
    ) -> None:
        check_max_stale(max_stale)
        self._views = check_views(views)
        self._tokens = TokenCheck(token)
        #: The hosts that requests may be addressed to.
        self.hosts = HostCheck(allowed_hosts)
        check_numbers(
            {
                "max_body": max_body,
                "max_resync": max_resync,
                "max_streams": max_streams,
                "heartbeat": heartbeat,
                "done_timeout": done_timeout,
                "resync_timeout": resync_timeout,
            }
        )
        self._adapter = adapter_of(adapter)
        self._page = page
        self._dashboard = Dashboard(self._adapter, sources, show_values=show_values)
        self._max_body = max_body
        self._max_resync = max_resync
        self._max_streams = max_streams
        self._heartbeat = heartbeat
        self._done_timeout = done_timeout
        self._resync_timeout = resync_timeout
        self._max_stale = max_stale
        self._closed = False
        self._lock = threading.Lock()  # guards _streams
        self._streams = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("wsgi.multiprocess"):
            self._dashboard.note_workers()
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        try:
            response = self._route(environ, path)
        except Problem as problem:
            response = problem.response()
        except DatasyncError as error:
            response = problem_of(error).response()
        except Exception as error:  # a bug; its text may quote a value, so only its type and place are logged
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = "%s %r failed: %s in %s:%s"
            log.error(text, method, path, type(error).__name__, place.filename, place.lineno)
            response = problem_of(error).response()
        response.headers.setdefault("Cache-Control", "no-cache")
        response.headers["X-Content-Type-Options"] = "nosniff"
        log.debug("%s %r: %d", method, path, response.status)
        return response(environ, start_response)

    @property
    def guarded(self) -> bool:
        """True when requests need a token."""
        return self._tokens.required

    @property
    def streams(self) -> int:
        """Number of open event streams."""
        return self._streams

    def close(self) -> None:
        """End the event streams; the adapter stays open. A server calls this when it closes. May be called twice."""
        self._closed = True
        if not self._adapter.guard.forked:
            self._adapter.replay_buffer.wake()

    def ended(self) -> bool:
        """Return True when event streams must end."""
        return self._closed or self._adapter.closed

    # Routes.

    def _route(self, environ: WSGIEnvironment, path: str) -> Response:
        self.hosts.check(environ)
        if path in ("", "/") and self._page:
            return self._serve_page(environ, path)
        if path in PATHS:
            return _only(environ, GET=lambda _: probe(environ, path, self._tokens, self._max_stale, self._views))
        if path == "/openapi.json":
            described = document(mounted_at(environ) or "/", page=self._page)
            return _only(environ, GET=lambda _: _json_response(json.dumps(described)))
        check_authorized(self._tokens, environ)
        self._adapter.guard.check()
        if self._adapter.closed and path != "/status":  # the state of a closed adapter is out of date
            raise Problem("closed", "the adapter is closed")
        if path == "/keys":
            return _only(environ, GET=self._list, PUT=self._resync, PATCH=self._transaction)
        if path.startswith((f"/{PLAIN_ROUTE}/", f"/{ESCAPED_ROUTE}/")):
            return self._one_key(environ, path)
        if path == "/events":
            return _only(environ, GET=self._events)
        if path == "/status" and self._page:
            return _only(environ, GET=self._status)
        if path == "/release" and self._page:
            return _only(environ, POST=self._release)
        raise Problem("not-found", "see /openapi.json for the paths")

    # One key.

    def _one_key(self, environ: WSGIEnvironment, path: str) -> Response:
        """Answer a request for the key in *path*, and name the key in the answer, whatever it is."""
        key = key_of_path(path)
        try:
            read_query(environ)
            meant = environ.get(HTTP_KEY_HEADER)
            if meant is not None and meant != escape(key):
                raise Problem(
                    "rewritten", f"the path names {key!r}, {KEY_HEADER} another key: a gateway rewrites paths"
                )
            response = _only(
                environ,
                GET=lambda _: self._get(environ, key),
                PUT=lambda _: self._put(environ, key),
                DELETE=lambda _: self._delete(environ, key),
            )
        except Problem as problem:
            response = problem.response()
        except DatasyncError as error:
            response = problem_of(error).response()
        response.headers[KEY_HEADER] = escape(key)
        return response

    def _get(self, environ: WSGIEnvironment, key: str) -> Response:
        pair = self._adapter.get(key)
        if pair is None:
            raise _no_such_key(key, self._adapter.registry.revision)
        content, content_type = content_of(pair.key, pair.payload)
        tag = self._adapter.tag(pair.revision, content)
        response = tagged(environ, tag, Response(content, 200, content_type))
        if rejected := self._adapter.registry.not_accepted(key):
            response.headers[NOT_ACCEPTED_HEADER] = escape_names(rejected)
        return response

    def _put(self, environ: WSGIEnvironment, key: str) -> Response:
        value = read_value(environ, key, self._max_body)
        created = self._adapter.get(key) is None
        outcome = self._commit(environ, key, value)
        response = _json_response(_written(key, outcome), 201 if created else 200)
        response.headers["ETag"] = f'"{self._adapter.tag(outcome.revision, value.data or b"")}"'
        return response

    def _delete(self, environ: WSGIEnvironment, key: str) -> Response:
        if self._adapter.get(key) is None and not environ.get("HTTP_IF_MATCH"):
            raise _no_such_key(key, self._adapter.registry.revision)
        outcome = self._commit(environ, key, ChangeBytes(key, op=Op.DELETE))
        if key in outcome.ignored:
            raise _no_such_key(key, outcome.revision)
        return _json_response(_written(key, outcome))

    def _commit(self, environ: WSGIEnvironment, key: str, change: ChangeBytes) -> Outcome:
        def submit() -> PropagationFuture:
            for _ in range(ATTEMPTS):
                expected = self._expected(environ, key)
                try:
                    return self._submit(environ, {key: change}, expected)
                except ConflictError:
                    continue  # another write came between: check the condition again
            raise Problem("overloaded", f"{key!r} changes too often", headers={"Retry-After": "1"})

        return self._answered(change.get_change_type().value, key, submit)

    def _expected(self, environ: WSGIEnvironment, key: str) -> Mapping[str, StateKeyVal | None] | None:
        """Return the pair that must still be there when the change is applied; None without a condition."""
        match, none_match = environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH")
        if match is None and none_match is None:
            return None
        pair = self._adapter.get(key)
        tag = "" if pair is None else self._adapter.tag(pair.revision, content_of(key, pair.payload)[0])
        headers = {} if pair is None else {"ETag": f'"{tag}"'}
        if match is not None and (pair is None or not names_tag(match, tag, weak=False)):
            state = "does not exist" if pair is None else "has another revision, see ETag"
            raise Problem("conflict", f"{key!r} {state}", headers=headers)
        if none_match is not None and pair is not None and names_tag(none_match, tag, weak=True):
            raise Problem("conflict", f"{key!r} has a revision that the condition excludes", headers=headers)
        return {key: pair}

    # All keys.

    def _list(self, environ: WSGIEnvironment) -> Response:
        arguments = read_query(environ, "prefix", "after", "limit", "values")
        prefix, after = text_of(arguments, "prefix"), text_of(arguments, "after")
        limit = number_of(arguments, "limit", PAGE_SIZE[0], 1, PAGE_SIZE[1])
        values = truth_of(arguments, "values", True)
        revision, page, more = self._adapter.page(prefix, after, limit)
        owed = {pair.key: rejected for pair in page if (rejected := self._adapter.registry.not_accepted(pair.key))}
        items = ",".join(
            item_of(pair.key, pair.revision, pair.payload, values=values, not_accepted=owed.get(pair.key))
            for pair in page
        )
        following = json.dumps(page[-1].key) if more else "null"
        response = _json_response(f'{{"revision":{revision},"items":[{items}],"next":{following}}}')
        # The marks change without a revision, so that a page with one has no tag: a client that asks again gets them.
        return response if owed else tagged(environ, event_id(self._adapter.instance, revision), response)

    def _transaction(self, environ: WSGIEnvironment) -> Response:
        check_unconditional(environ)
        changes = read_changes(environ, self._max_resync)
        submit = partial(self._submit, environ, changes)
        subject = count_of_keys(len(changes)) + (f", first {next(iter(changes))!r}" if changes else "")
        outcome = self._answered("Transaction", subject, submit, next(iter(changes), ""))
        return _json_response(json.dumps({"revision": outcome.revision, "ignored": list(outcome.ignored)}))

    def _resync(self, environ: WSGIEnvironment) -> Response:
        check_unconditional(environ)
        values = read_resync(environ, self._max_resync)
        trace, timeout = trace_of(environ), self._resync_timeout
        submit = partial(self._adapter.submit_resync, values, ctx=trace, timeout=timeout)
        outcome = self._answered("Resync", count_of_keys(len(values)), submit, next(iter(values), ""))
        return _json_response(json.dumps({"revision": outcome.revision, "keys": len(values)}))

    def _events(self, environ: WSGIEnvironment) -> Response:
        arguments = read_query(environ, "prefix", "follow", "heartbeat", several="prefix")
        prefixes = tuple(arguments.get("prefix", [""]))
        for prefix in prefixes:
            check_text(prefix, "a prefix")
        heartbeat = seconds_of(arguments, "heartbeat", self._heartbeat, *HEARTBEAT_RANGE)
        last_id = environ.get("HTTP_LAST_EVENT_ID", "")
        request = StreamRequest(prefixes, last_id, truth_of(arguments, "follow", True), heartbeat)
        with self._lock:
            full = self._streams >= self._max_streams
            self._streams += not full
        if full:
            detail = f"all {self._max_streams} event streams are in use"
            raise Problem("overloaded", detail, headers={"Retry-After": "5"})
        # Our own server knows when a client has disconnected; behind another one the next heartbeat finds out.
        gone: Callable[[], bool] = environ.get("datasync.peer_gone", bool)
        stream = stream_events(self._adapter, request, lambda: self.ended() or gone())
        # The second header is for nginx, which would otherwise buffer the events.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        headers[PREFIX_HEADER] = ",".join(map(escape, prefixes))
        return Response(stream, 200, CONTENT_EVENTS, headers, on_close=self._stream_ended)

    def _stream_ended(self) -> None:
        with self._lock:
            self._streams -= 1

    # The dashboard.

    def _serve_page(self, environ: WSGIEnvironment, path: str) -> Response:
        if not path:  # the relative links of the page need the slash
            location = quote(mounted_at(environ)) + "/"
            return _only(environ, GET=lambda _: Response(b"", 308, "text/plain", {"Location": location}))
        headers = {"Content-Security-Policy": PAGE_POLICY, "Referrer-Policy": "no-referrer"}
        return _only(environ, GET=lambda _: Response(PAGE, 200, "text/html; charset=utf-8", headers))

    def _status(self, environ: WSGIEnvironment) -> Response:
        arguments = read_query(environ, "prefix", "limit")
        limit = number_of(arguments, "limit", 200, 0, PAGE_SIZE[1])
        shown = self._dashboard.overview(text_of(arguments, "prefix"), limit)
        return _json_response(json.dumps(shown | {"streams": self._streams}))

    def _release(self, environ: WSGIEnvironment) -> Response:
        kind, name, seen = read_release(environ)
        return _json_response(json.dumps({"released": self._dashboard.release(kind, name, seen)}))

    # Shared by the routes.

    def _submit(
        self,
        environ: WSGIEnvironment,
        changes: Mapping[str, ChangeBytes],
        expected: Mapping[str, StateKeyVal | None] | None = None,
    ) -> PropagationFuture:
        context, timeout = trace_of(environ), self._done_timeout
        return self._adapter.submit_changes(changes, ctx=context, timeout=timeout, expected=expected)

    def _answered(
        self, op: str, subject: str, submit: Callable[[], PropagationFuture], first: str | None = None
    ) -> Outcome:
        """Submit, wait for the subscribers, and record the outcome; *first* is a key of several."""
        began = time.monotonic()
        status, detail, revision = 500, "", 0
        key = subject if first is None else first
        try:
            outcome = submit().result()
            status, revision = 200, outcome.revision
            return outcome
        except DatasyncError as error:
            problem = problem_of(error)
            status, detail = problem.status, problem.detail
            key = next((one for texts in problem.members.get("reasons", {}).values() for one in texts if one), key)
            raise problem from error
        except Problem as problem:
            status, detail = problem.status, problem.detail
            raise
        finally:
            seconds = time.monotonic() - began
            record = RequestRecord(time.time(), op, subject, key, revision, status, detail, seconds)
            self._adapter.replay_buffer.record(record)


#: The name of the application for code that mounts it: ``wsgi_app(adapter, token=...)``.
wsgi_app = Application


def _only(environ: WSGIEnvironment, **handlers: Callable[[WSGIEnvironment], Response]) -> Response:
    """Call the handler of the request's method; HEAD is GET without the body."""
    method = environ["REQUEST_METHOD"].upper()
    handler = handlers.get("GET" if method == "HEAD" else method)
    if handler is None:
        allowed = ", ".join(["HEAD", *handlers] if "GET" in handlers else handlers)
        detail = f"{method} is not allowed here: use {allowed}"
        raise Problem("method-not-allowed", detail, headers={"Allow": allowed})
    return handler(environ)


def _no_such_key(key: str, revision: int) -> Problem:
    return Problem("no-such-key", f"the key {key!r} does not exist", members={"revision": revision})


def _json_response(text: str, status: int = 200) -> Response:
    return Response(text, status, CONTENT_JSON)


def _written(key: str, outcome: Outcome) -> str:
    return f'{{"key":{json.dumps(key)},"revision":{outcome.revision}}}'
