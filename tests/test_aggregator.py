"""Many transports seen as one (C12): against members that fail at every possible place."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from datasync import AggregatedRegistration, KVProtoWatchers, KVProtoWriters
from datasync.errors import AggregateError, InvalidArgumentError, SubscriptionError, UnsupportedError


class Boom(Exception):
    """What a member raises."""


class FakeRegistration:
    def __init__(self, fails: frozenset[str] = frozenset()) -> None:
        self.fails, self.prefixes, self.closed = fails, {"base/"}, 0

    def _maybe(self, verb: str) -> None:
        if verb in self.fails:
            raise Boom(verb)

    def register(self, resync_name: str, key_prefix: str) -> None:
        self._maybe("register")
        if key_prefix in self.prefixes:
            raise SubscriptionError(key_prefix)
        self.prefixes.add(key_prefix)

    def unregister(self, key_prefix: str) -> None:
        self._maybe("unregister")
        self.prefixes.discard(key_prefix)

    def close(self) -> None:
        self.closed += 1
        self._maybe("close")

    def __enter__(self) -> FakeRegistration:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class FakeWatcher:
    """A transport; *fails* names the verbs that raise, of itself and of its registrations."""

    def __init__(self, fails: frozenset[str] = frozenset()) -> None:
        self.fails, self.made = fails, list[FakeRegistration]()
        self.calls = list[tuple[Any, ...]]()

    def watch(self, *arguments: Any) -> FakeRegistration:
        self.calls.append(arguments)
        if "watch" in self.fails:
            raise Boom("watch")
        self.made.append(FakeRegistration(self.fails))
        return self.made[-1]


class FakeWriter:
    def __init__(self, fails: frozenset[str] = frozenset()) -> None:
        self.fails, self.values = fails, dict[str, str]()

    def put(self, key: str, data: StringValue, *opts: object) -> None:
        if "put" in self.fails:
            raise Boom("put")
        self.values[key] = data.value


class FakeDeleter(FakeWriter):
    def delete(self, key: str, *opts: object) -> bool:
        if "delete" in self.fails:
            raise Boom("delete")
        return self.values.pop(key, None) is not None


def failures(*verbs: str) -> st.SearchStrategy[list[frozenset[str]]]:
    """For each of up to six members, the verbs that fail."""
    return st.lists(st.frozensets(st.sampled_from(verbs)), max_size=6)


def text(value: str = "x") -> StringValue:
    return StringValue(value=value)


# -- watch ------------------------------------------------------------------------------------------------------------


@given(failures("watch", "close"))
def test_c12_watch_is_all_or_nothing(fails: list[frozenset[str]]) -> None:
    # given members of which some fail to watch, or to close again
    members = [FakeWatcher(verbs) for verbs in fails]
    changes: Queue[Any] = Queue()
    first = next((place for place, verbs in enumerate(fails) if "watch" in verbs), None)

    def watch() -> AggregatedRegistration:
        return KVProtoWatchers(members).watch("agent", changes, None, "a/", "b/")

    # when all are watched through one
    if first is None:
        registration = watch()
        # then every one has a registration, made with the very arguments
        assert list(registration.registrations) == [member.made[0] for member in members]
        assert all(member.calls == [("agent", changes, None, "a/", "b/")] for member in members)
        assert not any(member.made[0].closed for member in members)
        return
    # or the first failure is raised, what was made is closed once, and nobody after it was asked
    undone = sum("close" in verbs for verbs in fails[:first])
    with pytest.raises(AggregateError if undone else Boom) as raised:
        watch()
    if undone:
        assert [str(error) for error in raised.value.errors] == ["watch"] + ["close"] * undone
    assert all(member.made[0].closed == 1 for member in members[:first])
    assert not any(member.calls for member in members[first + 1 :])


def test_d24_a_keyboard_interrupt_during_watch_also_closes_what_was_made() -> None:
    class Interrupted(FakeWatcher):
        def watch(self, *arguments: Any) -> FakeRegistration:
            raise KeyboardInterrupt

    before = FakeWatcher(frozenset({"close"}))
    with pytest.raises(KeyboardInterrupt):
        KVProtoWatchers(before, Interrupted()).watch("agent", None, Queue(), "a/")
    assert before.made[0].closed == 1


# -- registration -----------------------------------------------------------------------------------------------------


@given(failures("register", "unregister"))
def test_c12_register_is_all_or_nothing(fails: list[frozenset[str]]) -> None:
    # given registrations of which some refuse a prefix, or refuse to give it up again
    members = [FakeRegistration(verbs) for verbs in fails]
    first = next((place for place, verbs in enumerate(fails) if "register" in verbs), None)
    # when a prefix is registered with all
    if first is None:
        AggregatedRegistration(members).register("agent", "new/")
        # then all have it
        assert all("new/" in member.prefixes for member in members)
        return
    undone = sum("unregister" in verbs for verbs in fails[:first])
    with pytest.raises(AggregateError if undone else Boom):
        AggregatedRegistration(members).register("agent", "new/")
    # or none, but those that will not let go of it, which the error counts
    assert sum("new/" in member.prefixes for member in members) == undone
    assert all("base/" in member.prefixes for member in members)


def test_c12_a_prefix_that_one_member_has_already_is_taken_back_from_the_others_only() -> None:
    # given a member that already has the prefix
    fresh, owner = FakeRegistration(), FakeRegistration()
    owner.prefixes.add("new/")
    # when it is registered with both
    with pytest.raises(SubscriptionError):
        AggregatedRegistration([fresh, owner]).register("agent", "new/")
    # then each has what it had
    assert (fresh.prefixes, owner.prefixes) == ({"base/"}, {"base/", "new/"})


@given(failures("unregister", "close"), st.sampled_from(["unregister", "close"]))
def test_d7_unregister_and_close_reach_every_member_and_raise_all_failures(
    fails: list[frozenset[str]], verb: str
) -> None:
    # given registrations of which some fail
    members = [FakeRegistration(verbs) for verbs in fails]
    registration = AggregatedRegistration(members)
    act: Callable[[], None] = registration.close if verb == "close" else lambda: registration.unregister("base/")
    expected = sum(verb in verbs for verbs in fails)
    # when all are told / then the failures come together, and every member was reached
    if expected:
        with pytest.raises(AggregateError) as raised:
            act()
        assert [str(error) for error in raised.value.errors] == [verb] * expected
    else:
        act()
    if verb == "close":
        assert [member.closed for member in members] == [1] * len(members)
    else:
        assert all(("base/" in member.prefixes) == ("unregister" in member.fails) for member in members)


def test_c12_a_registration_closes_at_the_end_of_its_with_block() -> None:
    member = FakeRegistration()
    with AggregatedRegistration([member]):
        assert member.closed == 0
    assert member.closed == 1


def test_d24_a_name_that_no_member_knows_is_an_error() -> None:
    class Unknowing(FakeRegistration):
        def register(self, resync_name: str, key_prefix: str) -> None:
            raise SubscriptionError(f"{resync_name} is not watching")

    with pytest.raises(SubscriptionError, match="stranger"):
        AggregatedRegistration([Unknowing(), Unknowing()]).register("stranger", "a/")


# -- writers ----------------------------------------------------------------------------------------------------------


@given(failures("put"))
def test_c12_put_reaches_every_writer_and_raises_all_failures_in_order(fails: list[frozenset[str]]) -> None:
    # given writers of which some fail
    members = [FakeWriter(verbs) for verbs in fails]
    bad = [place for place, verbs in enumerate(fails) if "put" in verbs]
    # when a value is put / then the failures come together
    if bad:
        with pytest.raises(AggregateError) as raised:
            KVProtoWriters(members).put("k", text("v"))
        assert len(raised.value.errors) == len(bad)
        assert raised.value.__cause__ is raised.value.errors[0]
    else:
        KVProtoWriters(members).put("k", text("v"))
    # and every other writer has it
    assert [place for place, member in enumerate(members) if member.values != {"k": "v"}] == bad


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_c12_delete_reaches_every_writer_that_can(shapes: list[tuple[bool, bool, bool]]) -> None:
    # given writers that can or cannot delete, hold the key or not, fail or not
    members = list[FakeWriter]()
    for able, holds, fails in shapes:
        member = (FakeDeleter if able else FakeWriter)(frozenset({"delete"} if fails else ()))
        if holds:
            member.values["k"] = "v"
        members.append(member)
    able_members = [member for member in members if isinstance(member, FakeDeleter)]
    writers = KVProtoWriters(members)
    # when the key is deleted / then no member that can still has it, but those that failed
    if not able_members:
        with pytest.raises(UnsupportedError, match="'k'"):
            writers.delete("k")
    elif any(member.fails for member in able_members):
        with pytest.raises(AggregateError):
            writers.delete("k")
    else:
        held = any(member.values for member in able_members)
        assert writers.delete("k") is held
    assert not any(member.values for member in able_members if not member.fails)


def test_c16_an_unusable_key_or_value_reaches_no_writer() -> None:
    member = FakeDeleter()
    writers = KVProtoWriters(member)
    for key, data in [("", text()), (None, text()), ("k", None), ("k", "text")]:
        with pytest.raises(InvalidArgumentError):
            writers.put(key, data)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        writers.delete("")
    assert member.values == {}


# -- sequences --------------------------------------------------------------------------------------------------------


def test_c12_empty_aggregates_are_null_objects() -> None:
    KVProtoWriters().put("k", text())
    assert KVProtoWriters([]).delete("k") is False
    with KVProtoWatchers().watch("agent", Queue(), None, "a/") as registration:
        registration.register("agent", "b/")
        registration.unregister("b/")
        assert registration.registrations == ()
    assert not KVProtoWatchers()


def test_c12_aggregates_are_sequences_of_their_members() -> None:
    one, two, three = FakeWatcher(), FakeWatcher(), FakeWatcher()
    for watchers in (KVProtoWatchers(one, two, three), KVProtoWatchers(iter([one, two, three]))):
        assert list(watchers) == [one, two, three]
        assert (watchers[0], watchers[-1], len(watchers)) == (one, three, 3)
        assert isinstance(watchers[1:], KVProtoWatchers)
        assert list(watchers[1:]) == [two, three]
        assert two in watchers
    assert repr(KVProtoWatchers(one)) == "KVProtoWatchers(FakeWatcher)"


def test_c12_an_aggregate_can_be_a_member_of_another() -> None:
    # given writers inside writers
    leaf = FakeDeleter()
    nested = KVProtoWriters(KVProtoWriters(leaf))
    # when used through the outer one
    nested.put("k", text("v"))
    # then the leaf is reached
    assert leaf.values == {"k": "v"}
    assert nested.delete("k") is True
    assert isinstance(nested[0], KVProtoWriters)


@pytest.mark.parametrize("kind", [KVProtoWatchers, KVProtoWriters])
def test_c16_a_member_of_the_wrong_kind_is_named(kind: Callable[..., object]) -> None:
    with pytest.raises(InvalidArgumentError, match="member 1 .* NoneType"):
        kind([FakeWatcher() if kind is KVProtoWatchers else FakeWriter(), None])
