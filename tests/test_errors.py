"""One tree of errors (HOUSE; C9, C12, C16)."""

from __future__ import annotations

import inspect
import pickle

import pytest

from datasync import errors
from datasync.errors import (
    AggregateError,
    CompactedError,
    DatasyncError,
    DecodeError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    MissingExtraError,
    NotReadyError,
    Permanent,
    PropagationError,
    Rejected,
    RetryAfter,
    StoreConnectionError,
    SubscriptionError,
)

ALL = [one for _, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_a_datasync_error_that_says_whether_to_try_again(kind: type[DatasyncError]) -> None:
    assert issubclass(kind, DatasyncError)
    assert isinstance(kind.retryable, bool)
    assert kind.__doc__


def test_only_what_may_mend_itself_is_retryable() -> None:
    assert {kind for kind in ALL if kind.retryable} == {NotReadyError, StoreConnectionError, Rejected, RetryAfter}


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (SubscriptionError, ValueError),
        (InvalidArgumentError, ValueError),
        (DecodeError, ValueError),
        (DeliveryTimeout, TimeoutError),
        (DoneTimeout, TimeoutError),
        (MissingExtraError, ImportError),
    ],
)
def test_callers_that_know_only_the_builtin_catch_it(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


def test_c9_a_propagation_error_names_each_subscription_and_keeps_its_error() -> None:
    refusals = {"one": ValueError("no"), "two": KeyError("k")}
    error = PropagationError(refusals)
    assert error.errors == refusals
    assert error.errors is not refusals
    assert "one" in str(error)
    assert "two" in str(error)


def test_c10_a_propagation_error_says_whether_and_when_to_try_again() -> None:
    later = Rejected({"a": RetryAfter(2), "b": RetryAfter(7), "c": ValueError("no")})
    error = PropagationError({"one": later, "two": RetryAfter(5)})
    assert (error.retryable, error.retry_after) == (True, 7.0)
    assert PropagationError({"one": Rejected({"a": Permanent(), "b": "no"})}).retryable is False
    assert Rejected({"a": Permanent(), "b": "no"}).retryable is True
    assert Rejected({"a": Permanent(), "b": Permanent()}).retryable is False
    assert PropagationError({"one": Permanent()}).retryable is False
    assert (PropagationError({"one": ValueError()}).retryable, PropagationError({}).retry_after) == (True, None)


def test_c10_what_is_told_of_a_propagation_error_has_the_same_reasons() -> None:
    reasons = {
        "one": {"a": "ValueError: no", "b": "no"},
        "two": {"": "RuntimeError: busy"},
        "three": {"": "and 3 more", "a": "x"},
    }
    assert PropagationError.told(reasons).reasons == reasons
    assert PropagationError({"one": Rejected({"a": ValueError("no")})}).reasons == {"one": {"a": "ValueError: no"}}


def test_c10_reasons_that_are_many_are_cut_and_counted() -> None:
    error = PropagationError({name: Rejected(dict.fromkeys("abc", "x" * 10)) for name in ("one", "two")})
    assert error.brief_reasons(1000) == error.reasons
    assert error.brief_reasons(30) == {"one": {"a": "x" * 10, "b": "x" * 10, "": "and 4 more"}}
    assert error.brief_reasons(5) == {"one": {"": "and 6 more"}}


def test_c12_an_aggregate_error_keeps_all_in_order() -> None:
    failures = [ValueError("a"), KeyError("b")]
    error = AggregateError(iter(failures))
    assert error.errors == tuple(failures)
    assert "2 members" in str(error)


def test_c9_a_summary_has_the_reason_in_the_consumers_own_words() -> None:
    # given a refusal that says why, and one without words
    error = PropagationError({"agent": ValueError("the interface is busy"), "other": KeyError()})
    # then the caller can read it, and look at the error itself
    assert "the interface is busy" in str(error)
    assert "KeyError" in str(error)
    assert "the interface is busy" in str(AggregateError([ValueError("the interface is busy")]))


def test_a_done_timeout_names_the_silent() -> None:
    assert DoneTimeout("no answer", ["one"]).silent == ("one",)
    assert DoneTimeout("no answer").silent == ()


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = MissingExtraError("etcd", "grpcio")
    assert "pip install 'datasync-kv[etcd]'" in str(error)
    assert error.extra == "etcd"


def test_a_compacted_error_has_the_revision_that_is_left() -> None:
    assert CompactedError("gone", 7).compact_revision == 7


def test_a_simple_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(InvalidArgumentError("bad key")))
    assert isinstance(error, InvalidArgumentError)
    assert str(error) == "bad key"


@pytest.mark.parametrize(
    "error",
    [
        PropagationError({"one": ValueError("no")}),
        PropagationError.told({"one": {"k": "ValueError: no"}}, retryable=False, retry_after=2.5),
        Rejected({"k": ValueError("no")}),
        RetryAfter(2.5, "later"),
        Permanent("never"),
        AggregateError([ValueError("no"), KeyError("k")]),
        DoneTimeout("late", ["one"]),
        CompactedError("gone", 7),
        MissingExtraError("etcd", "grpc"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_whole_from_another_process(error: DatasyncError) -> None:
    # given an error as a pool of processes hands it back / then nothing of it is lost
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert repr(vars(twin)) == repr(vars(error))
