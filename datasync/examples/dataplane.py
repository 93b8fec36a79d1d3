"""The dataplane of the example agent: interfaces and routes in memory, and the rules for valid ones."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.json_format import MessageToDict, ParseDict

from datasync.examples.netconf_pb2 import Interface, Route

#: Key prefixes of interfaces and routes, below the agent's own prefix.
INTERFACES = "config/interface/"
ROUTES = "config/route/"
#: Smallest and largest MTU, in bytes.
MTU_RANGE = (68, 9216)

Item = Interface | Route


class ConfigurationError(Exception):
    """The dataplane cannot apply a configuration; ``problems`` maps each invalid key to the reason."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(f"{key}: {problem}" for key, problem in self.problems.items()))


class Dataplane:
    """Interfaces and routes by key.

    Args:
      path: A file that keeps them when the agent ends, as a kernel would. None: they end with the agent.

    Threads: one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.items: dict[str, Item] = {}
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            self.items = {key: ParseDict(fields, new_item(key)) for key, fields in stored.items()}

    def apply(self, items: Mapping[str, Item]) -> None:
        """Replace the whole configuration with *items*, or change nothing and raise ``ConfigurationError``."""
        problems = check(items)
        if problems:
            raise ConfigurationError(problems)
        self.items = dict(items)
        if self._path is not None:
            self._path.write_text(json.dumps({key: MessageToDict(item) for key, item in self.items.items()}))

    def apply_what_fits(self, items: Mapping[str, Item], problems: Mapping[str, str]) -> dict[str, str]:
        """Apply every valid key; an invalid key keeps its last valid value, if that still fits.

        Args:
          items: The wanted configuration, without the keys in *problems*.
          problems: Keys that are already known to be invalid, with the reasons.

        Returns:
          All problems by key.
        """
        problems = dict(problems)
        accepted = {key: self.items[key] for key in problems if key in self.items} | dict(items)
        # Removing a key can invalidate others, as an interface does its routes, so check again.
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

    def apply_changes(self, changes: Mapping[str, Item | None], problems: Mapping[str, str]) -> dict[str, str]:
        """Apply every change that fits, and return the problems of the others by key.

        Args:
          changes: Key to its new value; None deletes it.
          problems: Keys of *changes* that are already known to be invalid, with the reasons.
        """
        problems = dict(problems)
        while True:
            fitting = {key: item for key, item in changes.items() if key not in problems}
            whole = {key: item for key, item in {**self.items, **fitting}.items() if item is not None}
            broken = check(whole)
            if not broken:
                self.apply(whole)
                return problems
            # A change may invalidate other keys, as deleting an interface does its routes. Which one it was is unknown.
            own = {key: broken[key] for key in fitting if key in broken}
            because = "; ".join(f"{key}: {problem}" for key, problem in broken.items())
            problems |= own or dict.fromkeys(fitting, because)


def new_item(key: str) -> Item:
    """Return an empty message of the type that *key* holds."""
    return Interface() if key.startswith(INTERFACES) else Route()


def check(items: Mapping[str, Item]) -> dict[str, str]:
    """Return the problems of a configuration by key; empty if it is valid."""
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
        return f"the value has the name {item.name!r}"
    if not least <= item.mtu <= most:
        return f"mtu {item.mtu} is not between {least} and {most}"
    for address in item.ip_addresses:
        try:
            ipaddress.ip_interface(address)
        except ValueError:
            return f"{address!r} is not an IP address"
    return ""


def _check_route(key: str, item: Route, interfaces: Mapping[str, Interface]) -> str:
    if item.destination != key.removeprefix(ROUTES):
        return f"the value has the destination {item.destination!r}"
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
            continue  # reported for the interface itself
