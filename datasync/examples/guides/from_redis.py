"""The program of the guide for users of Redis pub/sub: limits that are applied as they change.

python -m datasync.examples.guides.from_redis sqlite:limits.db
"""

import sys

# [program]
from typing import Any

from datasync import Plugin, Reconciler, connect


def apply(key: str, limit: Any, before: Any) -> None:
    print(key, "is unlimited" if limit is None else f"may send {limit['mbit']} Mbit/s")


def work(url: str) -> None:
    with connect(url) as store:
        store.new_broker("limit/").put("eth0", b'{"mbit": 100}')  # what a publisher does, in any process
        with Plugin(store, "limit/") as limits:
            with Reconciler(limits, "limiter", apply=apply, state="limiter.state") as limiter:
                limiter.wait_synced(10)


# [end]
if __name__ == "__main__":
    work(sys.argv[1])
