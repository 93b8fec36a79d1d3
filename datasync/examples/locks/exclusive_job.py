"""A job that one process at a time does: a lock, an end when it is lost, and a write that no former holder can make.

Run it several times at once, kill one of them, or stop one with Ctrl-Z for longer than the lease::

    export STORE=sqlite:jobs.db
    python -m datasync.examples.locks.exclusive_job & python -m datasync.examples.locks.exclusive_job
"""

import os

from datasync import connect

STEPS = int(os.environ.get("STEPS", "5"))

# [job]
with connect(os.environ.get("STORE", "sqlite:jobs.db")) as store:
    lock = store.lock("locks/report", ttl=5)
    with lock:
        print(f"holds the lock, token {lock.token}", flush=True)
        for step in range(STEPS):
            if lock.lost.wait(0.1):  # in place of a sleep: True as soon as another process may hold the lock
                raise SystemExit(f"lost the lock in step {step}")
        # The store writes only if our key in the line is still the one that we put.
        report = store.new_broker().new_txn().if_revision(lock.key, lock.token).put("report", b"%d" % lock.token)
        print("written" if report.commit().succeeded else "not written: the lock was lost", flush=True)
# [end]
