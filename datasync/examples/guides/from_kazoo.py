"""The program of the guide for users of kazoo: a cached tree, an ephemeral node, the state of the connection.

python -m datasync.examples.guides.from_kazoo sqlite:tree.db
"""

import sys

# [program]
from datasync import Plugin, View, connect, with_client_lifetime_ttl


def work(url: str) -> None:
    with connect(url) as store, Plugin(store) as plugin, View(plugin, "tree", "/hosts/", "/alive/") as tree:
        tree.on_change(lambda path, old, new: print(f"{path} was {old} is {new}"))
        tree.wait_synced()
        store.new_broker().put("/alive/worker-1", b'"up"', with_client_lifetime_ttl())
        tree.put("/hosts/web", {"port": 80})
        print(f"{tree.get('/hosts/web')}, {tree.get('/hosts/db', 'no data')}, {tree.state.value}")


# [end]
if __name__ == "__main__":
    work(sys.argv[1])
