"""The process of an owner of client-lifetime keys: ``python -m tests.faults.sources.sqlite_owner PATH``."""

from __future__ import annotations

import argparse

from datasync.keyval.sqlite.store import SQLiteStore
from datasync.keyval.types import PutOp
from tests.support.child_process import Answer, answer_questions

#: Seconds of its lease.
TTL = 0.5


class Owner:
    """What may be asked; every method is a question."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._store: SQLiteStore | None = None

    def put(self, prefix: str, number: int, value: str) -> Answer:
        """Open a store and put so many keys for its lifetime, in one transaction."""
        self._store = SQLiteStore(self._path, synchronous="off", session_ttl=TTL, lock_timeout=20)
        ops = [PutOp(f"{prefix}{n:05}", value.encode(), client_lifetime=True) for n in range(number)]
        return {"lease": self._store._lease.id, "revision": self._store.commit(ops).revision}

    def settled(self) -> Answer:
        """Whether it holds its lease and has nothing to put again."""
        assert self._store is not None
        return {"settled": not self._store._lease.due}

    def close(self) -> Answer:
        """Close the store: the keys go."""
        if self._store is not None:
            self._store.close()
            self._store = None
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    owner = Owner(parser.parse_args().path)
    answer_questions({"put": owner.put, "settled": owner.settled, "close": owner.close})
    owner.close()


if __name__ == "__main__":
    main()
