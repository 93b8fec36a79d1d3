"""Transactions inside the process: one part of the program commits changes, another part applies them.

python -m datasync.examples.local_transaction
"""

from __future__ import annotations

import threading
from queue import Queue

from datasync import ChangeEvent, Op, PropagationError, Rejected
from datasync.examples.netconf_pb2 import Interface
from datasync.kvdbsync.local import DEFAULT_REGISTRY, ProtoTxn


def apply(event: ChangeEvent) -> None:
    """Print the changes; reject an interface without an MTU, and no other key."""
    problems: dict[str, str] = {}
    for change in event.get_changes():
        old, new = Interface(), Interface()
        existed = change.get_prev_value(old)
        if change.get_change_type() is Op.DELETE:
            print(f"  {change.get_key()} was deleted, its mtu was {old.mtu}")
        elif not change.get_value(new).mtu:
            problems[change.get_key()] = f"{change.get_key()} has no mtu"
        else:
            print(f"  {change.get_key()} has mtu {new.mtu}" + (f", before {old.mtu}" if existed else ""))
    if problems:
        raise Rejected(problems)


def consume(events: Queue[ChangeEvent | None]) -> None:
    """Acknowledge every event in any case: the caller of ``commit`` is waiting."""
    while (event := events.get()) is not None:
        try:
            apply(event)
        except Exception as error:
            event.done(error)
        else:
            event.done()


def main() -> None:
    events: Queue[ChangeEvent | None] = Queue()
    consumer = threading.Thread(target=consume, args=(events,), name="consumer")
    consumer.start()
    # None instead of a resync queue: the registry is empty, so there is no RESYNC to receive.
    with DEFAULT_REGISTRY.watch("printer", events, None, "interface/"):
        txn = ProtoTxn(DEFAULT_REGISTRY.propagate_changes)

        print("create two interfaces in one transaction")
        txn.put("interface/eth0", Interface(name="eth0", mtu=1500)).put(
            "interface/eth1", Interface(name="eth1", mtu=1500)
        )
        outcome = txn.commit()
        print(f"  done, revision {outcome.revision}")

        print("change one, delete one, and delete one that does not exist")
        txn.put("interface/eth0", Interface(name="eth0", mtu=9000)).delete("interface/eth1").delete("interface/eth9")
        outcome = txn.commit()
        print(f"  done, revision {outcome.revision}, nothing to delete: {', '.join(outcome.ignored)}")

        print("create one that the consumer rejects")
        try:
            txn.put("interface/eth2", Interface(name="eth2")).commit()
        except PropagationError as error:
            for name, reasons in error.reasons.items():
                print(f"  rejected by {name}: {'; '.join(reasons.values())}")
    events.put(None)
    consumer.join()


if __name__ == "__main__":
    main()
