"""The program of the guide for users of python-etcd3: hosts that are followed, a sign of life, one owner.

python -m datasync.examples.guides.from_etcd3 etcd://127.0.0.1:2379
"""

import sys

# [program]
from datasync import Plugin, View, connect, with_client_lifetime_ttl


def work(url: str) -> None:
    with connect(url) as store, Plugin(store, "/hosts/") as plugin, View(plugin, "hosts") as hosts:
        hosts.on_change(lambda key, old, new: print(f"{key} was {old} is {new}"))
        hosts.wait_synced()
        broker = store.new_broker("/")
        broker.put("alive/worker-1", b"up", with_client_lifetime_ttl())
        if broker.put_if_not_exists("owner", b"worker-1"):
            hosts.put("web", {"port": 80})
        print(dict(hosts))


# [end]
if __name__ == "__main__":
    work(sys.argv[1])
