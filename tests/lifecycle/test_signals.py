"""^C and SIGTERM while something waits: they come out at once, and the library goes on; C15."""

from __future__ import annotations

from tests.lifecycle.conftest import Program
from tests.support.timing import at_most

#: Seconds within which a signal has to come out. ``etcd`` closes a store with a watch that is not there yet.
LIMIT = 2.0
#: Seconds for closing everything: 2 plus what is in flight, which here is a call that is never answered (I15).
CLOSE_LIMIT = 4.5


def test_c15_signals_come_out_of_every_call_that_waits(program: Program) -> None:
    # given everything open, servers that say nothing, consumers that do not answer, and a file that another one locks
    # when ^C and SIGTERM come while a call waits there
    told = program("signals")
    # then each comes out of each call, soon
    assert len(told["results"]) >= 50
    limit, close_limit = at_most(LIMIT), at_most(CLOSE_LIMIT)
    for call, number, what, seconds in told["results"]:
        assert what == {"SIGINT": "KeyboardInterrupt", "SIGTERM": "Stop"}[number], (call, number, what)
        assert seconds < limit, (call, number)
    # and everything still works, and can be closed, and leaves no thread
    assert told["troubles"] == []
    assert told["closed"] < close_limit
    assert told["left"] == []


def test_c15_a_signal_that_comes_just_before_a_call_begins_to_wait_comes_out_too(program: Program) -> None:
    # given the same / when SIGTERM wakes no call: the main thread was not waiting yet, or another one was interrupted
    told = program("signals", "--missed")
    # then each call looks for it by itself
    limit = at_most(LIMIT)
    assert len(told["results"]) >= 25
    for call, number, what, seconds in told["results"]:
        assert what == "Stop", (call, number, what)
        assert seconds < limit, (call, number)
    assert told["troubles"] == []
