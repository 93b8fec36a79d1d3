"""The stream of a prefix: one Watch call whose fragments are joined.

A compacted start is reported here: ``_cancelled`` returns it as CompactedError.

A bookmark must not claim too much. The revision in a header is the member's and may be ahead of events that are still
to come: always in the response to the creation, and in the response to a requested progress report before etcd 3.4.31
and 3.5.13. So only events, periodic progress reports, and requested ones of later members advance the position.

Nothing that a response repeats is believed before it is compared: the number of the watch, the cluster, the keys, the
revisions. ``etcd grpc-proxy`` numbers the watches itself, knows no requests for progress reports (some releases end
when they get one), resumes its own watches when a server is replaced, and reports nothing to its clients. So behind
it the history is verified before each batch, and whenever a probe is answered.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``watchInternal``; contract C3, C13, C23.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, CompactedError, StoreConnectionError, StoreError, UnsupportedError
from datasync.keyval.driver import Stream
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.continuity import ContinuityCheck
from datasync.keyval.etcd.errors import find_fault
from datasync.keyval.etcd.keys import encode_key, prefix_range, unexpected_response
from datasync.keyval.etcd.methods import RANGE, STATUS, WATCH
from datasync.keyval.etcd.watch_requests import WATCH_ID, WatchRequests
from datasync.runtime.grpcio import forget_traceback
from datasync.runtime.logs import get_logger
from datasync.runtime.wording import below

log = get_logger(__name__)

#: The watch id in responses about the whole call.
NO_WATCH = -1
#: Mean size of values, in bytes, from which fragments are worth their cost to the server.
LARGE_VALUE = 4096
#: Revisions in the largest response of a server to a watch that is behind.
MAX_REVISIONS = 1000
#: First releases, by minor version, whose requested progress reports wait for the events before them.
EXACT_SINCE = {(3, 4): 31, (3, 5): 13}


class EtcdStream(Stream):
    """The commits under *prefix* with a revision above *after*, for one pass.

    Whole responses are the default. For fragments the server measures the response again after each event, which takes
    minutes for many small events, while a response holds at most 1,000 revisions. With large values those may be a
    gigabyte, which an unreliable connection may never transfer whole. So after large values, in a listing or in events,
    the next call requests fragments. A whole response can also exceed the idle limit on a slow connection: a call that
    timed out before its first event is repeated in the other mode. *in_fragments* are the prefixes of the store whose
    next call requests fragments.
    """

    def __init__(
        self,
        client: EtcdClient,
        continuity: ContinuityCheck,
        prefix: str,
        after: int,
        idle_limit: float,
        in_fragments: set[str],
    ) -> None:
        self._client = client
        self._continuity = continuity
        self._prefix = prefix
        self._position = after
        self._idle_limit = idle_limit
        self._in_fragments = in_fragments
        self._scope = client.new_scope(patient=False)  # the reader has a backoff of its own
        self._cluster = 0  # the id of the cluster that was verified
        self._proxied = False  # a grpc-proxy is in between
        #: True if the reader relies on progress reports, to know that there are no more events up to a revision.
        self.needs_progress = False

    def cancel(self) -> None:
        if not self._client.forked:
            self._scope.cancel()

    def __iter__(self) -> Iterator[Batch | None]:
        try:
            if not self._is_cancelled():
                yield from self._follow()
        except StoreError:
            if not self._is_cancelled():
                raise
        except ClosedError:
            if self._client.closed:
                raise
        finally:
            if not self._client.forked:
                self._client.end_scope(self._scope)

    def _is_cancelled(self) -> bool:
        """Return True after ``cancel``. Raises if the store was closed: this stream was not cancelled then."""
        self._client.check_usable()
        return self._scope.cancelled

    def _follow(self) -> Iterator[Batch]:
        self._cluster = self._verify()
        exact_member = self._exact_member()
        start = self._position
        requests = WatchRequests(self._prefix, start + 1, self._idle_limit, self._prefix in self._in_fragments)
        call, endpoint = self._client.open_stream(WATCH, requests, self._scope)
        requests.attach(call)
        try:
            yield from self._read(call, requests, exact_member)
            if not self._is_cancelled():
                raise StoreConnectionError(f"{self._what()}: {endpoint.address} ended the watch")
        except grpc.RpcError as error:
            forget_traceback(error)
            if self._is_cancelled():
                return
            self._client.record_failure(error, endpoint)
            endpoint.leave(call)  # before anything that takes time: grpc goes on connecting meanwhile
            if requests.idle:
                if self._position == start:
                    self._in_fragments ^= {self._prefix}
                raise StoreConnectionError(
                    f"{self._what()}: nothing received from {endpoint.address} for {self._idle_limit:g} s"
                ) from error
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # a message exceeds our size limit
                self._in_fragments.add(self._prefix)
            raise self._client.error(error, endpoint, self._what()) from error
        except StoreConnectionError:  # of a call beside the watch, perhaps
            endpoint.leave(call)  # not below, where a collector may be at work in the middle of the endpoint
            raise
        finally:
            if not self._client.forked:
                requests.end()
                call.cancel()

    def _verify(self, *, brief: bool = False) -> int:
        return self._continuity.verify(self._client, self._prefix, self._position, self._scope, brief=brief)

    def _verify_within(self, call: Any, *, brief: bool = False) -> None:
        """Verify the history while *call* goes on, and leave *call* as the one that ``cancel`` cancels."""
        self._verify(brief=brief)
        self._scope.attach(call)

    def _exact_member(self) -> int | None:
        """Return the id of the current member if its requested progress reports are exact, otherwise None."""
        try:
            status = self._client.call(STATUS, pb.StatusRequest(), self._what(), scope=self._scope)
        except StoreConnectionError:
            raise  # the watch would fail too, but only after an idle limit
        except StoreError as error:
            log.debug("%s: the version of the server is unknown: %s", self._what(), error)
            return None
        numbers = [int(number) for number in re.findall(r"[0-9]{1,9}", status.version[:40])[:3]]
        if len(numbers) < 3:
            return None
        newest = max(EXACT_SINCE)
        since = EXACT_SINCE.get((numbers[0], numbers[1]))
        exact = numbers[2] >= since if since is not None else (numbers[0], numbers[1]) > newest
        return status.header.member_id if exact else None

    def _read(self, call: Any, requests: WatchRequests, exact_member: int | None) -> Iterator[Batch]:
        commits: list[Commit] = []
        ops: list[tuple[str, bytes | None]] = []
        revision = 0  # of the last commit in the list, 0 if it is empty
        prefix = encode_key(self._prefix)
        watch_id: int | None = None  # until the first response, which is about the creation of our watch
        for response in call:
            requests.pause_timeout()
            if response.header.cluster_id not in (0, self._cluster):  # 0: made up by a grpc-proxy
                raise unexpected_response(f"{self._what()}: a response of another cluster")
            if watch_id is None:
                watch_id = self._created(response)
                self._proxied = watch_id != WATCH_ID
                if self.needs_progress and (self._proxied or exact_member is None):
                    raise UnsupportedError(
                        f"{self._what()}: only etcd 3.4.{EXACT_SINCE[3, 4]}, 3.5.{EXACT_SINCE[3, 5]} and later, without"
                        " a proxy, tell where the history of a key ends that does not exist"
                    )
                requests.begin_probes(progress=not self._proxied)
                bookmark = self._bookmark(response, complete=True)
                # The backlog comes late through a proxy, and is awaited: the reader would miss its last commit.
                if not self._proxied or response.header.revision <= self._position:
                    yield bookmark
            elif response.watch_id != watch_id:
                if response.canceled and response.created:
                    raise self._probe_rejected()
                # The confirmation that a probe was cancelled is ignored: its first response was sufficient.
                if not response.canceled:
                    bookmark = self._side_bookmark(response, requests, exact_member, complete=not commits)
                    if self._proxied and response.created:
                        self._verify_within(call, brief=True)
                    yield bookmark
            elif response.canceled:
                raise self._cancelled(response)
            elif response.created:
                raise unexpected_response(f"{self._what()}: the number of our watch for another one")
            elif events := response.events:
                seen = response.header.revision
                size = 0  # response.ByteSize() would encode the whole response again
                for event in events:
                    kv = event.kv
                    key, modified = kv.key, kv.mod_revision  # once, because every access creates an object
                    if not key.startswith(prefix):
                        raise unexpected_response(f"{self._what()}: an event of another key")
                    if modified != revision or not revision:
                        if not revision < modified <= seen:
                            raise unexpected_response(f"{self._what()}: the revisions do not increase")
                        revision = modified
                        ops = []
                        commits.append(Commit(revision, ops))
                    value = kv.value
                    size += len(value)
                    ops.append((key.decode("utf-8", "surrogateescape"), None if event.type else value))
                if size > LARGE_VALUE * len(events):
                    self._in_fragments.add(self._prefix)
                # A fragment may end within a revision: hold that commit back, deliver the complete ones.
                whole, commits = (commits[:-1], commits[-1:]) if response.fragment else (commits, [])
                if not commits:
                    revision = 0
                if whole:
                    if self._proxied:
                        if len(whole) >= MAX_REVISIONS:
                            # The proxy takes such a response for all that there was up to the revision in its header,
                            # and may then go over to the watch of another client that is ahead.
                            raise CompactedError(f"{self._what()}: too far behind to be sure of what the proxy sends")
                        self._verify_within(call)
                    self._continuity.streamed(self._prefix, response.header, events)
                    yield self._batch(whole)
            else:
                yield self._bookmark(response, complete=not commits)
            self._client.check_usable()
            requests.restart_timeout()

    def _created(self, response: pb.WatchResponse) -> int:
        """Return the id of our watch from the first response. A rejection has any id."""
        if response.canceled:
            raise self._cancelled(response)
        if not response.created or response.events:
            raise unexpected_response(f"{self._what()}: no watch was created")
        return response.watch_id

    def _batch(self, commits: list[Commit]) -> Batch:
        if commits[0].revision <= self._position:
            raise StoreConnectionError(f"{self._what()}: the server sent revision {commits[0].revision} again")
        self._position = commits[-1].revision
        return Batch(self._position, commits)

    def _bookmark(self, response: pb.WatchResponse, complete: bool) -> Batch:
        """Return the bookmark of a response of our watch without events: the creation or a progress report."""
        revision = response.header.revision
        if response.created and revision < self._position:
            # The cluster is ahead, as verify() found, so this member lags behind; another one may not.
            raise StoreConnectionError(f"{self._what()}: this member is behind, at revision {revision}")
        if not response.created and complete:
            self._position = max(self._position, revision)
        return Batch(self._position, ())

    def _side_bookmark(
        self, response: pb.WatchResponse, requests: WatchRequests, exact_member: int | None, complete: bool
    ) -> Batch:
        """Return the bookmark of a response about the whole call or about a probe."""
        revision = response.header.revision
        if response.created:
            if not requests.probe_answered(response.watch_id):
                raise unexpected_response(f"{self._what()}: a watch that was not requested")
            if 0 < revision < self._position:  # 0: made up by a grpc-proxy
                raise StoreConnectionError(f"{self._what()}: the server went back to revision {revision}")
        elif response.watch_id == NO_WATCH and complete and response.header.member_id == exact_member:
            self._position = max(self._position, revision)
        return Batch(self._position, ())

    def _cancelled(self, response: pb.WatchResponse) -> Exception:
        reason = response.cancel_reason
        if response.compact_revision:
            return CompactedError(
                f"{self._what()}: the history before {response.compact_revision} is compacted",
                response.compact_revision,
            )
        fault = find_fault(None, reason)
        if fault.renew:
            return StoreConnectionError(f"{self._what()}: the token expired")
        detail = reason.rpartition("etcdserver: ")[2] or "cancelled by the server"
        return fault.error(f"{self._what()}: {detail}" + (f"; {fault.advice}" if fault.advice else ""))

    def _probe_rejected(self) -> Exception:
        """Find out why a probe was rejected: a permission was revoked, or any user or role was changed."""
        key, range_end = prefix_range(self._prefix)
        request = pb.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True)
        self._client.call(RANGE, request, self._what(), scope=self._scope)  # renews the token; raises if still rejected
        return StoreConnectionError(f"{self._what()}: the token expired")

    def _what(self) -> str:
        return f"following {below(self._prefix)} after {self._position}"
