"""The state of a source: previous values and revisions (C6; D14, D16, D17)."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from datasync.events import MessageT, Op
from datasync.syncbase.change import Change, ChangeBytes
from datasync.syncbase.state import PrevRevisions
from tests.conftest import PATIENT

keys = st.sampled_from(["a", "b", "c"])
datas = st.none() | st.sampled_from([b'"1"', b'"2"', b'""'])
transactions = st.dictionaries(keys, datas, max_size=3)


@given(st.lists(st.tuples(transactions, st.integers(0, 12)), max_size=8))
def test_c6_previous_values_and_revisions_follow_a_dict(steps: list[tuple[dict[str, bytes | None], int]]) -> None:
    # given a state and a plain dict beside it
    state, model, last = PrevRevisions(), dict[str, tuple[int, bytes]](), 0
    for ops, wanted in steps:
        # when a transaction is applied
        changes, ignored = state.apply(list(ops.items()), wanted)
        # then its changes have the values of just before, all at one revision that goes forward
        expected_ignored = [key for key, value in ops.items() if value is None and key not in model]
        assert ignored == expected_ignored
        assert [change.key for change in changes] == [key for key in ops if key not in expected_ignored]
        for change in changes:
            assert change.before == model.get(change.key)
            assert change.value == ops[change.key]
            assert change.op is (Op.DELETE if ops[change.key] is None else Op.PUT)
            assert change.revision == (wanted if wanted > last else last + 1)
        if changes:
            last = changes[0].revision
        for change in changes:
            model.pop(change.key, None)
            if change.value is not None:
                assert isinstance(change.value, bytes)
                model[change.key] = (change.revision, change.value)
        assert state.revision == last
        assert dict(state.freeze()) == model


class OwnValue:
    """A value that a caller made."""

    def get_value(self, message: MessageT) -> MessageT:
        return message


@given(st.lists(transactions | st.tuples(transactions), max_size=8), st.integers(0, 8))
def test_c22_the_size_of_the_state_is_that_of_its_values(
    steps: list[dict[str, bytes | None] | tuple[dict[str, bytes | None]]], first: int
) -> None:
    # given a state whose size is asked for only after some steps, and one in which a tuple is a whole new state
    state = PrevRevisions()
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            state.replace({key: (number + 1, value) for key, value in step[0].items() if value is not None}, number + 1)
        else:
            state.apply(list(step.items()))
        # then it is the sum of what is there
        if number >= first:
            assert state.size == sum(len(value) for _, value in state.freeze().values() if isinstance(value, bytes))


def test_c22_values_of_every_kind_have_a_size() -> None:
    # given a message, bytes in an object, bytes, and an object of a caller
    message = StringValue(value="long")
    state = PrevRevisions()
    state.put("message", Change("message", message))
    state.put("object", ChangeBytes("object", b"123"))
    state.put("bytes", b"12345")
    state.put("own", OwnValue())
    assert state.size == message.ByteSize() + 3 + 5
    # when they change or go / then the size follows
    state.put("message", b"1")
    state.delete("object")
    assert state.size == 1 + 5


def test_d17_a_revision_does_not_start_over_after_a_delete() -> None:
    state = PrevRevisions()
    assert state.put("k", b'"1"')[1] == 1
    assert state.put_with_revision("k", b'"2"', 7)[1] == 7
    gone = state.delete("k")
    assert gone is not None
    assert gone.revision == 7
    before, revision = state.put("k", b'"3"')
    assert (before, revision) == (None, 9)
    assert state.put_with_revision("k", b'"4"', 3)[1] == 10


def test_the_stores_of_go_consumers_tests_have_their_methods() -> None:
    # given a store of previous values
    state = PrevRevisions()
    # when it is used as Go's PrevRevisions is
    assert state.put("k", b'"1"')[0] is None
    before, _ = state.put("k", b'"2"')
    assert before is not None
    assert before.get_value(StringValue()).value == "1"
    assert state.delete("nothing") is None
    # then it answers alike
    found = state.get("k")
    assert found is not None
    assert (found.get_key(), found.get_revision()) == ("k", 2)
    assert state.list_keys() == ["k"]
    state.cleanup()
    assert state.list_keys() == []
    assert state.revision == 2


def test_a_frozen_state_is_shared_and_never_changes() -> None:
    # given two readers of one moment
    state = PrevRevisions()
    state.put("a", b'"1"')
    first, second = state.freeze(), state.freeze()
    assert first is second
    # when the state goes on
    state.put("b", b'"2"')
    state.delete("a")
    # then theirs does not, and a new one has what is new
    assert list(first) == ["a"]
    assert list(state.freeze()) == ["b"]
    # and it is not kept once nobody reads it
    del first, second
    gc.collect()
    assert state._frozen is None or state._frozen() is None or list(state._frozen() or ()) == ["b"]


def test_replacing_the_state_returns_the_one_before_and_may_go_back() -> None:
    state = PrevRevisions()
    state.put_with_revision("a", b'"1"', 9)
    assert dict(state.replace({"b": (2, b'"2"')}, 2)) == {"a": (9, b'"1"')}
    assert state.revision == 2
    state.advance(1)
    assert state.revision == 2
    state.advance(5)
    assert state.revision == 5
    assert state.put("b", b'"3"')[1] == 6


def test_d17_no_update_of_many_threads_is_lost() -> None:
    # given four threads that each set every key 200 times
    state = PrevRevisions()
    start = threading.Barrier(4)

    def work(number: int) -> list[int]:
        start.wait(PATIENT)
        return [state.put(f"k{step % 5}", f'"{number}"'.encode())[1] for step in range(200)]

    with ThreadPoolExecutor(4) as pool:
        revisions = [one for part in pool.map(work, range(4)) for one in part]
    # then each put had a revision of its own, without a hole
    assert sorted(revisions) == list(range(1, 801))
    assert state.revision == 800
