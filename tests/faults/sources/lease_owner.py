"""A process that owns client-lifetime keys, and stands in elections: it can be suspended and disconnected."""

from __future__ import annotations

import argparse
import threading

from datasync.errors import DatasyncError
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from datasync.keyval.types import PutOp
from tests.support.child_process import Answer, answer_questions

#: Keys of one transaction.
SIZE = 100
#: Threads that put while the store is closed.
WRITERS = 4


class Owner:
    """Answers to the harness. Threads: one, and those that put during ``close``."""

    def __init__(self, endpoint: str, ttl: int) -> None:
        self._store = EtcdStore(EtcdConfig(endpoints=(endpoint,), session_ttl=ttl, operation_timeout=10.0))

    def put(self, prefix: str, number: int) -> Answer:
        """Put *number* client-lifetime keys, and return the error if that fails."""
        try:
            for start in range(0, number, SIZE):
                keys = range(start, min(start + SIZE, number))
                self._store.commit([PutOp(f"{prefix}{key}", b"%d" % key, client_lifetime=True) for key in keys])
        except DatasyncError as error:
            return {"error": repr(error)}
        return {}

    def close(self, prefix: str) -> Answer:
        """Close the store while other threads put keys under *prefix*."""
        putting = threading.Barrier(WRITERS + 1)
        writers = [threading.Thread(target=self._put_on, args=(f"{prefix}{n}/", putting)) for n in range(WRITERS)]
        for writer in writers:
            writer.start()
        putting.wait()
        self._store.close()
        for writer in writers:
            writer.join()
        return {}

    def _put_on(self, prefix: str, putting: threading.Barrier) -> None:
        putting.wait()
        try:
            for count in range(1_000_000):
                self._store.commit([PutOp(f"{prefix}{count}", b"", client_lifetime=True)])
        except DatasyncError:
            pass  # the store is closed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--ttl", type=int, default=5)
    options = parser.parse_args()
    owner = Owner(options.endpoint, options.ttl)
    answer_questions({"put": owner.put, "close": owner.close})
    owner._store.close()


if __name__ == "__main__":
    main()
