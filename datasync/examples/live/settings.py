"""Settings that are one validated object: it is replaced as a whole, and only by a valid one.

Run it: ``python -m datasync.examples.live.settings``.
"""

import time
from dataclasses import dataclass

from datasync import connect, open_settings

STORE = "memory://live-settings"


@dataclass(frozen=True)
class Pool:
    low: int = 1
    high: int = 10

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


def main() -> None:
    with connect(STORE) as store, open_settings(STORE, "pool/", Pool) as settings:
        settings.wait_synced()
        broker = store.new_broker("pool/")
        print("at first", settings.current)
        broker.put("low", b"20")  # no object is valid with it
        while not settings.problems:
            time.sleep(0.01)
        print("still", settings.current)
        broker.put("high", b"30")
        while settings.problems:
            time.sleep(0.01)
        print("then", settings.current)


if __name__ == "__main__":
    main()
