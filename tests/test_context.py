"""What travels with a change (contract section 2; C12)."""

from __future__ import annotations

import contextvars
import threading

from datasync.context import current_source, with_source
from tests.conftest import PATIENT


def test_outside_an_event_there_is_no_source() -> None:
    assert current_source.get() == ""


def test_the_source_is_set_in_a_copy_only() -> None:
    # given a context with a variable of the application's
    tag: contextvars.ContextVar[str] = contextvars.ContextVar("tag", default="")
    context = contextvars.Context()
    context.run(tag.set, "mine")
    # when a source is put into it / then the copy has both, and the original only what it had
    copy = with_source(context, "store")
    assert (copy.run(tag.get), copy.run(current_source.get)) == ("mine", "store")
    assert context.run(current_source.get) == ""


def test_none_stands_for_the_callers_context() -> None:
    tag: contextvars.ContextVar[str] = contextvars.ContextVar("tag", default="")
    token = tag.set("here")
    assert with_source(None, "store").run(tag.get) == "here"
    tag.reset(token)


def test_two_threads_can_run_in_the_copies_at_once() -> None:
    # given two copies of one context
    context = contextvars.Context()
    inside = threading.Barrier(2)
    seen: list[str] = []

    def work() -> None:
        inside.wait(PATIENT)
        seen.append(current_source.get())

    threads = [threading.Thread(target=with_source(context, name).run, args=(work,)) for name in ("one", "two")]
    # when both are entered at the same time / then each sees its own
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT)
    assert sorted(seen) == ["one", "two"]
