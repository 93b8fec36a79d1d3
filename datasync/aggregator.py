"""Many transports seen as one watcher and one writer.

They delegate: each member delivers its own stream, with its own RESYNCs of its own keys only. Whose event it is, is in
its context: ``event.get_context().run(current_source.get)``. A consumer must never read the RESYNC of one member as
"all keys of the others are gone".

Source: cn-infra ``datasync/aggregator.go``; contract C12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from queue import Queue
from typing import Any, TypeVar, cast, overload

from google.protobuf.message import Message

from datasync.api import KeyProtoValDeleter, KeyProtoValWriter, KeyValProtoWatcher, WatchRegistration
from datasync.errors import AggregateError, InvalidArgumentError, UnsupportedError
from datasync.options import DelOption, PutOption
from datasync.runtime.closing import Closable
from datasync.serializer import check_key, check_message

T = TypeVar("T")
SelfT = TypeVar("SelfT", bound="_Members[Any]")


class _Members(Sequence[T]):
    """A fixed sequence of members that are all of one kind, given one by one or as one iterable."""

    __slots__ = ("_members",)

    def __init__(self, *members: T | Iterable[T]) -> None:
        # An aggregate is itself a member and an iterable: then it is meant as a member.
        if len(members) == 1 and not self._fits(members[0]) and isinstance(members[0], Iterable):
            members = tuple(members[0])
        for place, member in enumerate(members):
            if not self._fits(member):
                name = type(self).__name__
                raise InvalidArgumentError(f"member {place} of {name} has the wrong type: {type(member).__name__}")
        self._members = cast("tuple[T, ...]", members)

    @staticmethod
    def _fits(member: object) -> bool:
        raise NotImplementedError

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
    """Watches through every member; with none, a watcher that never delivers.

    Threads: any; holds no state but its members.
    Source: Go ``KVProtoWatchers``.
    """

    __slots__ = ()

    @staticmethod
    def _fits(member: object) -> bool:
        return isinstance(member, KeyValProtoWatcher)

    def watch(
        self, resync_name: str, change_queue: Queue[Any] | None, resync_queue: Queue[Any] | None, *key_prefixes: str
    ) -> AggregatedRegistration:
        """Watch through every member in order, or through none.

        Raises:
          DatasyncError: What the first failing member raised, after the registrations made so far were closed.
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


class AggregatedRegistration(Closable):
    """The registrations of one subscription with several watchers; with none, a null object.

    Threads: any. It has no lock of its own: registering and unregistering *one* prefix from two threads at the same
    time may leave it with some members.
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
          DatasyncError: What the first failing member raised, after the others were brought back.
          AggregateError: Bringing them back failed too; the first of ``errors`` is the member's.
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
        """Remove *key_prefix* from every member; ``AggregateError`` with what failed, after all were reached."""
        _reach_all(self._registrations, lambda registration: registration.unregister(key_prefix))

    def close(self) -> None:
        """Close every member; ``AggregateError`` with what failed, after all were reached. May be called twice."""
        _reach_all(self._registrations, lambda registration: registration.close())

    def __repr__(self) -> str:
        return f"AggregatedRegistration({len(self._registrations)} members)"


class KVProtoWriters(_Members[KeyProtoValWriter]):
    """Writes through every member; with none, a writer that goes nowhere.

    Threads: any; holds no state but its members.
    Source: Go ``KVProtoWriters``.
    """

    __slots__ = ()

    @staticmethod
    def _fits(member: object) -> bool:
        return isinstance(member, KeyProtoValWriter)

    def put(self, key: str, data: Message, *opts: PutOption) -> None:
        """Write to every member, also after one failed.

        Raises:
          InvalidArgumentError: *key* or *data* is unusable; no member was reached.
          AggregateError: Some members failed; the others have the value.
        """
        check_key(key)
        check_message(data)
        _reach_all(self, lambda member: member.put(key, data, *opts))

    def delete(self, key: str, *opts: DelOption) -> bool:
        """Delete from every member that can; True when any had something to delete.

        Raises:
          UnsupportedError: There are members, and none can delete.
          AggregateError: Some members failed; the others have deleted.
        """
        check_key(key)
        able = [member for member in self if isinstance(member, KeyProtoValDeleter)]
        if self and not able:
            raise UnsupportedError(f"none of the {len(self)} writers can delete {key!r}")
        return any(_reach_all(able, lambda member: member.delete(key, *opts)))


def _reach_all(members: Iterable[T], act: Callable[[T], Any]) -> list[Any]:
    """Call *act* for every member, then raise what failed, together."""
    results, errors = _attempt(members, act)
    if errors:
        # The first as the cause, so that its traceback is printed; all are in .errors.
        raise AggregateError(errors) from errors[0]
    return results


def _roll_back(error: BaseException, done: Sequence[T], undo: Callable[[T], Any]) -> None:
    """Undo what was done, last first; raises only if that fails and *error* can be raised along with it."""
    _, errors = _attempt(reversed(done), undo)
    # Never hide a KeyboardInterrupt behind an error of ours.
    if errors and isinstance(error, Exception):
        raise AggregateError([error, *errors]) from error


def _attempt(members: Iterable[T], act: Callable[[T], Any]) -> tuple[list[Any], list[BaseException]]:
    results: list[Any] = []
    errors: list[BaseException] = []
    for member in members:
        try:
            results.append(act(member))
        except Exception as error:
            errors.append(error)
    return results, errors
