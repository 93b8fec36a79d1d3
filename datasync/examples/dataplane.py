"""What the example agent configures: a dataplane that exists in memory only, and the rules of what it accepts."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.json_format import MessageToDict, ParseDict

from datasync.examples.netconf_pb2 import Interface, Route

#: What the keys of the two kinds start with, below the agent's own prefix.
INTERFACES = "config/interface/"
ROUTES = "config/route/"
#: Smallest and largest MTU in bytes.
MTU_RANGE = (68, 9216)

Item = Interface | Route


class Refused(Exception):
    """The dataplane does not take a configuration; ``problems`` says why, by key."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(f"{key}: {problem}" for key, problem in self.problems.items()))


class Dataplane:
    """Interfaces and routes by key.

    Args:
      path: Where to keep them when the agent is not there, as a kernel would; None: they go with the agent.

    Threads: one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.items: dict[str, Item] = {}
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            self.items = {key: ParseDict(fields, new_item(key)) for key, fields in stored.items()}

    def apply(self, items: Mapping[str, Item]) -> None:
        """Make *items* the whole configuration, or leave everything as it is and raise ``Refused``."""
        problems = check(items)
        if problems:
            raise Refused(problems)
        self.items = dict(items)
        if self._path is not None:
            self._path.write_text(json.dumps({key: MessageToDict(item) for key, item in self.items.items()}))

    def apply_what_fits(self, items: Mapping[str, Item], problems: Mapping[str, str]) -> dict[str, str]:
        """Apply what can be; a key with a problem keeps what it had, if that still fits.

        Args:
          items: The wanted configuration, without the keys that are in *problems* already.
          problems: Keys whose value is known to be unusable, and why.

        Returns:
          All problems by key.
        """
        problems = dict(problems)
        accepted = {key: self.items[key] for key in problems if key in self.items} | dict(items)
        # One that goes may take others with it, as an interface does its routes: so look again.
        while broken := check(accepted):
            problems = broken | problems
            for key in broken:
                good = self.items.get(key)
                if good is None or accepted[key] is good:
                    del accepted[key]
                else:
                    accepted[key] = good
        self.apply(accepted)
        return problems


def new_item(key: str) -> Item:
    """An empty message of the kind that *key* holds."""
    return Interface() if key.startswith(INTERFACES) else Route()


def check(items: Mapping[str, Item]) -> dict[str, str]:
    """What is wrong with a configuration, by key; empty when it can be applied."""
    interfaces = {item.name: item for item in items.values() if isinstance(item, Interface)}
    problems = {}
    for key, item in items.items():
        problem = _check_interface(key, item) if isinstance(item, Interface) else _check_route(key, item, interfaces)
        if problem:
            problems[key] = problem
    return problems


def _check_interface(key: str, item: Interface) -> str:
    least, most = MTU_RANGE
    if item.name != key.removeprefix(INTERFACES):
        return f"the interface in it is called {item.name!r}"
    if not least <= item.mtu <= most:
        return f"mtu {item.mtu} is not between {least} and {most}"
    for address in item.ip_addresses:
        try:
            ipaddress.ip_interface(address)
        except ValueError:
            return f"{address!r} is no IP address"
    return ""


def _check_route(key: str, item: Route, interfaces: Mapping[str, Interface]) -> str:
    if item.destination != key.removeprefix(ROUTES):
        return f"the route in it goes to {item.destination!r}"
    if item.out_interface not in interfaces:
        return f"there is no interface {item.out_interface!r}"
    try:
        ipaddress.ip_network(item.destination)
        hop = ipaddress.ip_address(item.next_hop)
    except ValueError as error:
        return str(error)
    if not any(hop in network for network in _networks(interfaces[item.out_interface])):
        return f"{item.next_hop} is not on a network of {item.out_interface}"
    return ""


def _networks(interface: Interface) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for address in interface.ip_addresses:
        try:
            yield ipaddress.ip_interface(address).network
        except ValueError:
            continue  # the interface itself has this problem
