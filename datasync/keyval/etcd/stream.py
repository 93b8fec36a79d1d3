"""Following a prefix: one Watch call, its fragments joined, its silence watched.

What a bookmark may claim is the delicate part. The revision in a header is the member's, and may be ahead of the events
that are still on their way: in the answer to the creation always, in the answer to a requested progress report before
etcd 3.4.31 and 3.5.13. Only events, periodic progress reports, and requested ones of later members move our revision.

Source: cn-infra ``db/keyval/etcd/bytes_broker_impl.go``, ``watchInternal``; contract C3, C13; D57, D58, D59.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import grpc

from datasync.commits import Batch, Commit
from datasync.errors import ClosedError, CompactedError, StoreConnectionError, StoreError
from datasync.keyval.driver import Stream
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.client import EtcdClient
from datasync.keyval.etcd.continuity import ContinuityCheck
from datasync.keyval.etcd.errors import find_fault
from datasync.keyval.etcd.keys import encode_key, prefix_range
from datasync.keyval.etcd.methods import RANGE, STATUS, WATCH
from datasync.keyval.etcd.watch_requests import WATCH_ID, WatchRequests
from datasync.runtime.grpcio import forget_traceback

log = logging.getLogger(__name__)

#: The id in answers that are about the whole call.
NO_WATCH = -1
#: Bytes of a value, on the average, from which on fragments cost the server little and spare us much.
LARGE_VALUE = 4096
#: Oldest releases, by minor version, whose requested progress reports wait for the events before them.
EXACT_SINCE = {(3, 4): 31, (3, 5): 13}


class EtcdStream(Stream):
    """The commits under *prefix* with a revision above *after*, one pass only. See the module's text for bookmarks.

    Responses are asked for whole: the server measures a response anew after each event that it adds to a fragment, so
    that a fragment of many small events takes it minutes, while it may hold at most 1,000 revisions anyway. Of large
    values those are a gigabyte; so once a listing or events turned out to be large, the next call asks for fragments: a
    line that breaks again and again may never carry a whole one. A whole one can also be too large for the idle limit
    on a slow line; so a call that was cut for its silence before its first event is tried the other way next time.
    *in_fragments* are the prefixes of that store whose turn it is.
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
        self._scope = client.new_scope(patient=False)  # the reader has pauses

    def cancel(self) -> None:
        if not self._client.forked:
            self._scope.cancel()

    def __iter__(self) -> Iterator[Batch | None]:
        try:
            if not self._over():
                yield from self._follow()
        except StoreError:
            if not self._over():
                raise
        except ClosedError:
            if self._client.closed:
                raise
        finally:
            if not self._client.forked:
                self._client.end_scope(self._scope)

    def _over(self) -> bool:
        """True after ``cancel``; a store closed meanwhile is an error, for nobody cancelled this stream."""
        self._client.check_usable()
        return self._scope.cancelled

    def _follow(self) -> Iterator[Batch]:
        self._continuity.verify(self._client, self._prefix, self._position, self._scope)
        exact_member = self._exact_member()
        start = self._position
        requests = WatchRequests(self._prefix, start + 1, self._idle_limit, self._prefix in self._in_fragments)
        call, endpoint = self._client.open(WATCH, requests, self._scope)
        requests.guard(call)
        try:
            yield from self._read(call, requests, exact_member)
            if not self._over():
                raise StoreConnectionError(f"{self._what()}: {endpoint.address} ended the watch")
        except grpc.RpcError as error:
            forget_traceback(error)
            if self._over():
                return
            self._client.note(error, endpoint)
            if requests.idle:
                if self._position == start:
                    self._in_fragments ^= {self._prefix}
                raise StoreConnectionError(
                    f"{self._what()}: no word from {endpoint.address} for {self._idle_limit:g} s"
                ) from error
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # more in one message than we take
                self._in_fragments.add(self._prefix)
            raise self._client.error(error, endpoint, self._what()) from error
        finally:
            if not self._client.forked:
                requests.end()
                call.cancel()

    def _exact_member(self) -> int | None:
        """The id of the member we talk to if its requested progress reports can be believed."""
        try:
            status = self._client.call(STATUS, pb.StatusRequest(), self._what(), scope=self._scope)
        except StoreConnectionError:
            raise  # to find the watch silent as well would take an idle limit more
        except StoreError as error:
            log.debug("%s: the version of the server is not known: %s", self._what(), error)
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
        revision = 0  # of the last of them, 0 when none waits
        prefix = encode_key(self._prefix)
        established = False  # the first answer is to our own watch, whatever id a refusal has
        for response in call:
            requests.heard()
            if response.canceled and (response.watch_id == WATCH_ID or not established):
                raise self._cancelled(response)
            established = True
            if response.watch_id != WATCH_ID:
                if response.canceled and response.created:
                    raise self._refused()
                # Also the word that a probe was dropped comes by here; one of its answers is sign of life enough.
                if not response.canceled:
                    yield self._aside(response, requests, exact_member, joined=not commits)
            elif events := response.events:
                size = 0  # response.ByteSize() would encode all of it once more
                for event in events:
                    kv = event.kv
                    key, modified = kv.key, kv.mod_revision  # once: each look makes an object
                    if not key.startswith(prefix):
                        raise StoreConnectionError(f"{self._what()}: an event of another key; is this an etcd?")
                    if modified != revision or not revision:
                        if modified <= revision:
                            raise StoreConnectionError(f"{self._what()}: revisions that do not grow; is this an etcd?")
                        revision = modified
                        ops = []
                        commits.append(Commit(revision, ops))
                    value = kv.value
                    size += len(value)
                    ops.append((key.decode("utf-8", "surrogateescape"), None if event.type else value))
                if size > LARGE_VALUE * len(events):
                    self._in_fragments.add(self._prefix)
                # A fragment may end within a revision: that one waits for the rest, whole ones do not.
                whole, commits = (commits[:-1], commits[-1:]) if response.fragment else (commits, [])
                if not commits:
                    revision = 0
                if whole:
                    self._continuity.streamed(self._prefix, response.header, events)
                    yield self._batch(whole)
            else:
                yield self._quiet(response, joined=not commits)
            self._client.check_usable()
            requests.listening()

    def _batch(self, commits: list[Commit]) -> Batch:
        if commits[0].revision <= self._position:
            raise StoreConnectionError(f"{self._what()}: the server repeats revision {commits[0].revision}")
        self._position = commits[-1].revision
        return Batch(self._position, commits)

    def _quiet(self, response: pb.WatchResponse, joined: bool) -> Batch:
        """The bookmark of a response of our watch that has no events: it was made, or it reports its progress."""
        revision = response.header.revision
        if response.created and revision < self._position:
            # The cluster has got further (verify() asked it), so this member lags; another may not.
            raise StoreConnectionError(f"{self._what()}: this member is behind, at revision {revision}")
        if not response.created and joined:
            self._position = max(self._position, revision)
        return Batch(self._position, ())

    def _aside(
        self, response: pb.WatchResponse, requests: WatchRequests, exact_member: int | None, joined: bool
    ) -> Batch:
        """The bookmark of a response about the whole call, or about a probe."""
        if response.created:
            requests.drop(response.watch_id)
        elif response.watch_id == NO_WATCH and joined and response.header.member_id == exact_member:
            self._position = max(self._position, response.header.revision)
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
            return StoreConnectionError(f"{self._what()}: the token ran out")
        detail = reason.rpartition("etcdserver: ")[2] or "cancelled by the server"
        return fault.error(f"{self._what()}: {detail}" + (f"; {fault.advice}" if fault.advice else ""))

    def _refused(self) -> Exception:
        """What it means that a probe was not allowed: a permission is gone, or any user or role was changed."""
        key, range_end = prefix_range(self._prefix)
        request = pb.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True)
        self._client.call(RANGE, request, self._what(), scope=self._scope)  # with a new token; raises if it is gone
        return StoreConnectionError(f"{self._what()}: the token ran out")

    def _what(self) -> str:
        return f"following {self._prefix!r} after {self._position}"
