"""A writer that needs to know when its own write has arrived: in the mirror, in a subscriber, in a view.

Run it: ``python -m datasync.examples.live.read_your_writes``.
"""

from collections.abc import Sequence
from typing import Any

from datasync import ChangeEvent, Consumer, Plugin, PropagationError, Rejected, View, codecs, connect


def main() -> None:
    limits: dict[str, int] = {}

    def handle(event: Any) -> None:
        changes: Sequence[Any] = event.get_changes() if isinstance(event, ChangeEvent) else ()
        for change in changes:
            if change.value > 100:
                raise Rejected({change.key: ValueError("above 100")})
            limits[change.key] = change.value

    with connect("memory://read-your-writes") as store, Plugin(kv=store, codec=codecs.json) as plugin:
        written = plugin.put("limit/eth0", 40)
        plugin.wait_for(written)  # the plugin's mirror has it
        print("mirror", plugin.registry.items("limit/")[0].value)

        with Consumer(plugin, "limiter", "limit/", handle=handle) as consumer:
            consumer.wait_synced(plugin.put("limit/eth0", 80))  # the subscriber has applied it
            print("subscriber", limits)
            try:
                consumer.wait_synced(plugin.put("limit/eth1", 200))
            except PropagationError as error:
                print("rejected", error.reasons["limiter"])

        with View(plugin, "view", "limit/") as view:
            view.put("limit/eth2", 60)  # returns when the view has it
            print("view", view["limit/eth2"])

        print("deleted", bool(plugin.delete("limit/eth2")), bool(plugin.delete("limit/eth2")))


if __name__ == "__main__":
    main()
