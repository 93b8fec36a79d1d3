"""The way to the master of a store: a server, one that sentinels name, or the node that has the slot of the store."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from datasync.errors import DatasyncError, InvalidArgumentError, StoreConnectionError
from datasync.keyval.redis.config import CLUSTER, SENTINEL, RedisConfig
from datasync.keyval.redis.errors import Elsewhere
from datasync.keyval.redis.link import Address, Link

#: Slots of a cluster.
SLOTS = 16384
#: Seconds that one sentinel or node has to answer where the master is, at most.
PATIENCE = 1.0


class Topology(ABC):
    """Finds the master. Threads: any."""

    #: True if another server may become the master.
    changes: bool = True

    @abstractmethod
    def find(self, avoid: Address | None = None) -> Address:
        """Return the address of the master, without asking the server *avoid*. Raises ``StoreConnectionError``."""

    def hint(self, address: Address) -> None:
        """Note that a server named *address* as the master."""


class SingleServer(Topology):
    """One server."""

    changes = False

    def __init__(self, address: Address) -> None:
        self._address = address

    def find(self, avoid: Address | None = None) -> Address:
        return self._address


class Informants(Topology):
    """Servers that know the master; the last one that answered is asked first."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._lock = threading.Lock()  # guards the addresses
        self._addresses = list(config.addresses)

    def find(self, avoid: Address | None = None) -> Address:
        with self._lock:
            addresses = [address for address in self._addresses if address != avoid]
        errors: list[DatasyncError] = []
        for address in addresses:
            try:
                link = self._link(address)
                try:
                    found = self._ask(link)
                finally:
                    link.close()
            except Elsewhere as error:
                errors.append(error.error)
            except DatasyncError as error:
                errors.append(error)
            else:
                self._prefer(address)
                return found
        if not errors:
            raise StoreConnectionError("no other node of the cluster is known")
        denied = next((error for error in errors if not isinstance(error, StoreConnectionError)), None)
        if denied is not None:
            raise denied
        raise StoreConnectionError(f"{self._nobody}: " + "; ".join(map(str, errors))) from errors[0]

    #: What it means that nobody answered.
    _nobody: str

    @abstractmethod
    def _link(self, address: Address) -> Link: ...

    @abstractmethod
    def _ask(self, link: Link) -> Address: ...

    def _prefer(self, address: Address) -> None:
        with self._lock:
            if address in self._addresses:
                self._addresses.remove(address)
            self._addresses.insert(0, address)
            del self._addresses[64:]

    def _hasty(self) -> float:
        return min(PATIENCE, self._config.timeout)


class Sentinels(Informants):
    """The master that sentinels name."""

    _nobody = "no sentinel knows the master"

    def _link(self, address: Address) -> Link:
        credentials = (self._config.sentinel_username, self._config.sentinel_password)
        return Link(self._config, address, timeout=self._hasty(), connect=self._hasty(), credentials=credentials)

    def _ask(self, link: Link) -> Address:
        name = self._config.master_name
        reply = link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name, what="asking a sentinel")
        if not isinstance(reply, list) or len(reply) != 2:
            raise StoreConnectionError(f"the sentinel {link.server} knows no master {name!r}: check the name")
        return reply[0].decode(), int(reply[1])


class Cluster(Informants):
    """The master of the slot that *tag* is in."""

    _nobody = "no node of the cluster answers"

    def __init__(self, config: RedisConfig) -> None:
        super().__init__(config)
        self.slot = slot_of(config.tag.encode())
        self._hinted: Address | None = None

    def find(self, avoid: Address | None = None) -> Address:
        hinted, self._hinted = self._hinted, None
        return hinted or super().find(avoid)

    def hint(self, address: Address) -> None:
        self._hinted = address

    def _link(self, address: Address) -> Link:
        return Link(self._config, address, timeout=self._hasty(), connect=self._hasty())

    def _ask(self, link: Link) -> Address:
        reply = link.call("CLUSTER", "SLOTS", what="asking for the slots of the cluster")
        found: Address | None = None
        for first, last, *nodes in _ranges(reply):
            for place, node in enumerate(nodes):
                address = (node[0].decode() if node[0] else link.address[0], int(node[1]))
                with self._lock:
                    if address not in self._addresses:
                        self._addresses.append(address)
                if not place and first <= self.slot <= last:
                    found = address
        if found is None:
            raise StoreConnectionError(f"no node of the cluster serves slot {self.slot}, that of this store")
        return found


def _ranges(reply: Any) -> Sequence[Any]:
    if not isinstance(reply, list):
        raise InvalidArgumentError("the server is not a node of a cluster: use redis://")
    return reply


_KINDS: dict[str, Callable[[RedisConfig], Topology]] = {SENTINEL: Sentinels, CLUSTER: Cluster}


def topology_of(config: RedisConfig) -> Topology:
    """Return the way to the master that *config* describes."""
    kind = _KINDS.get(config.kind)
    return SingleServer(config.addresses[0]) if kind is None else kind(config)


def slot_of(tag: bytes) -> int:
    """Return the slot of the keys with *tag* in braces: CRC-16 (XMODEM) of the tag."""
    crc = 0
    for byte in tag:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc % SLOTS
