"""Many transports combined into one watcher and one writer.

Each member delivers its own stream, with RESYNCs of its own keys only. The context of an event names its source:
``event.get_context().run(current_source.get)``. A consumer must never take the RESYNC of one member to mean that all
keys of the others are gone.

Source: cn-infra ``datasync/aggregator.go``; contract C12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from queue import Queue
from time import monotonic
from typing import Any, ClassVar, Protocol, TypeVar, cast, overload, runtime_checkable

from google.protobuf.message import Message

from datasync.api import WAIT_TIMEOUT, KeyProtoValDeleter, KeyProtoValWriter, KeyValProtoWatcher, WatchRegistration
from datasync.checks import check_key, check_message
from datasync.commits import HasRevision, WriteResult
from datasync.errors import AggregateError, InvalidArgumentError, UnsupportedError
from datasync.options import DelOption, PutOption
from datasync.runtime.closing import Closable
from datasync.runtime.timeouts import check_timeout
from datasync.runtime.wording import counted

T = TypeVar("T")
SelfT = TypeVar("SelfT", bound="_Members[Any]")


class _Members(Sequence[T]):
    """A fixed sequence of members of one kind, given one by one or as one iterable."""

    __slots__ = ("_members",)

    #: The interface of the members.
    _kind: ClassVar[Any]

    def __init__(self, *members: T | Iterable[T]) -> None:
        # An aggregate is both a member and an iterable: it counts as a member.
        if len(members) == 1 and not isinstance(members[0], self._kind) and isinstance(members[0], Iterable):
            members = tuple(members[0])
        for place, member in enumerate(members):
            if not isinstance(member, self._kind):
                name = type(self).__name__
                raise InvalidArgumentError(f"member {place} of {name} has the wrong type {type(member).__name__}")
        self._members = cast("tuple[T, ...]", members)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self: SelfT, place: slice) -> SelfT: ...
    def __getitem__(self: SelfT, place: int | slice) -> T | SelfT:
        if isinstance(place, slice):
            return type(self)(*self._members[place])
        return cast("T", self._members[place])

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(type(member).__name__ for member in self._members)})"


class KVProtoWatchers(_Members[KeyValProtoWatcher]):
    """A watcher that watches through every member; without members it never delivers.

    Threads: any; it has no state but its members.
    Source: Go ``KVProtoWatchers``.
    """

    __slots__ = ()
    _kind = KeyValProtoWatcher

    def watch(
        self, resync_name: str, change_queue: Queue[Any] | None, resync_queue: Queue[Any] | None, *key_prefixes: str
    ) -> AggregatedRegistration:
        """Watch through every member in order, or through none.

        Raises:
          DatasyncError: The error of the first member that failed, after the earlier registrations were closed.
          AggregateError: Closing them failed too; the first of ``errors`` is the member's.
        """
        made: list[WatchRegistration] = []
        try:
            for member in self:
                made.append(member.watch(resync_name, change_queue, resync_queue, *key_prefixes))
        except BaseException as error:
            _roll_back(error, made, lambda registration: registration.close())
            raise
        return AggregatedRegistration(made)


@runtime_checkable
class _CanWait(Protocol):
    """A registration of a source that knows what its subscriber has answered."""

    def wait_synced(self, revision: Any = None, timeout: float = WAIT_TIMEOUT) -> None: ...


class AggregatedRegistration(Closable):
    """The registrations of one subscription with several watchers; without any, a null object.

    Threads: any. It has no lock of its own: two threads that register and unregister the *same* prefix at the same
    time may leave it with only some of the members.
    Source: Go ``AggregatedRegistration``.
    """

    __slots__ = ("_registrations",)

    def __init__(self, registrations: Iterable[WatchRegistration] = ()) -> None:
        self._registrations = tuple(registrations)

    @property
    def registrations(self) -> tuple[WatchRegistration, ...]:
        """The members' registrations, in their order."""
        return self._registrations

    def register(self, resync_name: str, key_prefix: str) -> None:
        """Add *key_prefix* with every member, or with none.

        Raises:
          DatasyncError: The error of the first member that failed, after the others were rolled back.
          AggregateError: The rollback failed too; the first of ``errors`` is the member's.
        """
        done: list[WatchRegistration] = []
        try:
            for registration in self._registrations:
                registration.register(resync_name, key_prefix)
                done.append(registration)
        except BaseException as error:
            _roll_back(error, done, lambda registration: registration.unregister(key_prefix))
            raise

    def unregister(self, key_prefix: str) -> None:
        """Remove *key_prefix* from every member. Raises ``AggregateError`` with all failures at the end."""
        _reach_all(self._registrations, lambda registration: registration.unregister(key_prefix))

    def wait_synced(
        self, revision: Sequence[int | HasRevision | None] | None = None, timeout: float = WAIT_TIMEOUT
    ) -> None:
        """Wait until the subscriber has accepted what every member knows now, *timeout* seconds in all (C21).

        Args:
          revision: One for each member, in their order: the result of its write, a revision, or None for what it knows
            now. The result of ``KVProtoWriters.put`` over the same members fits. A single revision means nothing: each
            source counts by itself.

        Raises:
          AggregateError: Some members failed, each as :meth:`datasync.syncbase.registration.Registration.wait_synced`.
          UnsupportedError: A member cannot wait; no other one was waited for.
          InvalidArgumentError: There is not one revision for each member.
        """
        timeout = check_timeout(timeout)
        if revision is None:
            revision = [None] * len(self._registrations)
        elif not isinstance(revision, Sequence) or len(revision) != len(self._registrations):
            count = counted(len(self._registrations), "member")
            raise InvalidArgumentError(f"an aggregate of {count} takes one revision for each member, in their order")
        unable = next((one for one in self._registrations if not isinstance(one, _CanWait)), None)
        if unable is not None:
            raise UnsupportedError(f"a {type(unable).__name__} cannot wait for its subscriber")
        until = monotonic() + timeout
        _reach_all(
            zip(self._registrations, revision, strict=True),
            lambda pair: cast("_CanWait", pair[0]).wait_synced(pair[1], max(0.0, until - monotonic())),
        )

    def close(self) -> None:
        """Close every member. Raises ``AggregateError`` with all failures at the end. May be called twice."""
        _reach_all(self._registrations, lambda registration: registration.close())

    def __repr__(self) -> str:
        return f"AggregatedRegistration({counted(len(self._registrations), 'member')})"


class KVProtoWriters(_Members[KeyProtoValWriter]):
    """A writer that writes through every member; without members it writes nothing.

    Threads: any; it has no state but its members.
    Source: Go ``KVProtoWriters``.
    """

    __slots__ = ()
    _kind = KeyProtoValWriter

    def put(self, key: str, data: Message, *opts: PutOption) -> tuple[WriteResult | None, ...]:
        """Write to every member, even if one fails; return their results, in their order.

        Raises:
          InvalidArgumentError: *key* or *data* is invalid; no member was called.
          AggregateError: Some members failed; the others have the value.
        """
        check_key(key)
        check_message(data)
        return tuple(_reach_all(self, lambda member: member.put(key, data, *opts)))

    def delete(self, key: str, *opts: DelOption) -> bool:
        """Delete from every member that supports it; True if the key existed in any of them.

        Raises:
          UnsupportedError: There are members, but none supports deletes.
          AggregateError: Some members failed; the others have deleted the key.
        """
        check_key(key)
        able = [member for member in self if isinstance(member, KeyProtoValDeleter)]
        if self and not able:
            raise UnsupportedError(
                f"{key!r} cannot be deleted: none of {counted(len(self), 'writer')} supports deletes"
            )
        return any(_reach_all(able, lambda member: member.delete(key, *opts)))


def _reach_all(members: Iterable[T], act: Callable[[T], Any]) -> list[Any]:
    """Call *act* for every member, then raise all failures together."""
    results: list[Any] = []
    errors: list[BaseException] = []
    for member in members:
        try:
            results.append(act(member))
        except Exception as error:
            errors.append(error)
    if errors:
        # The first as the cause, so that its traceback is printed; all are in .errors.
        raise AggregateError(errors) from errors[0]
    return results


def _roll_back(error: BaseException, done: Sequence[T], undo: Callable[[T], Any]) -> None:
    """Call *undo* for *done*, last first. Raise only if that fails and *error* can be raised together with it."""
    try:
        _reach_all(reversed(done), undo)
    except AggregateError as failed:
        # Never replace a KeyboardInterrupt with another error.
        if isinstance(error, Exception):
            raise AggregateError([error, *failed.errors]) from error
