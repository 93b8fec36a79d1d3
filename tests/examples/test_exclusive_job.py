"""The example of a lock, in processes of its own."""

from __future__ import annotations

import signal
from pathlib import Path

from datasync.keyval import connect
from tests.conftest import PATIENT, wait_until
from tests.support.running import Running


def test_of_two_programs_one_works_at_a_time_and_each_writes_with_its_token(tmp_path: Path) -> None:
    # given two programs that start together
    url = f"sqlite://{tmp_path}/jobs.db"
    with (
        Running("-m", "datasync.examples.locks.exclusive_job", extra={"STORE": url}) as one,
        Running("-m", "datasync.examples.locks.exclusive_job", extra={"STORE": url}) as two,
        connect(url) as store,
    ):
        # when both have ended / then both have written, and the last one with the greater token
        assert [one.wait(PATIENT), two.wait(PATIENT)] == [0, 0]
        assert "written" in one.output
        assert "written" in two.output
        tokens = [int(program.output.split("token ")[1].split()[0]) for program in (one, two)]
        assert store.new_broker().get_value("report").data == b"%d" % max(tokens)
        assert list(store.new_broker().list_keys("locks/")) == []


def test_a_program_that_was_suspended_beyond_its_lease_ends_without_a_write(tmp_path: Path) -> None:
    # given a program in the middle of its work, and another one that waits
    url = f"sqlite://{tmp_path}/jobs.db"
    extra = {"STORE": url, "STEPS": "400"}
    with Running("-m", "datasync.examples.locks.exclusive_job", extra=extra) as late, connect(url) as store:
        late.wait_for("holds the lock")
        late.send(signal.SIGSTOP)
        # when its lease has ended, and another one holds the lock
        with store.lock("locks/report", ttl=5) as lock:
            late.send(signal.SIGCONT)
            # then it ends
            assert late.wait(PATIENT) == 1
            assert "lost the lock" in late.output
            assert lock.is_acquired
        wait_until(lambda: not list(store.new_broker().list_keys("locks/")), "nothing is left")
        assert not store.new_broker().get_value("report").found
