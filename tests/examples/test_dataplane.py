"""The rules of the example's dataplane."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasync.examples.dataplane import INTERFACES, ROUTES, ConfigurationError, Dataplane, Item, check
from datasync.examples.netconf_pb2 import Interface, Route


def interface(name: str = "eth0", mtu: int = 1500, *addresses: str) -> dict[str, Item]:
    return {INTERFACES + name: Interface(name=name, mtu=mtu, ip_addresses=addresses or ("192.0.2.1/24",))}


def route(destination: str = "10.0.0.0/8", hop: str = "192.0.2.9", out: str = "eth0") -> dict[str, Item]:
    return {ROUTES + destination: Route(destination=destination, next_hop=hop, out_interface=out)}


def test_a_route_on_the_network_of_its_interface_is_accepted() -> None:
    assert check({**interface(), **route()}) == {}
    assert check({**interface("eth0", 9216, "2001:db8::1/64"), **route("::/0", "2001:db8::9")}) == {}


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        (interface(mtu=67), "mtu 67 is not between"),
        (interface(mtu=9217), "mtu 9217 is not between"),
        (interface("eth0", 1500, "not an address"), "is not an IP address"),
        ({INTERFACES + "eth0": Interface(name="eth1", mtu=1500)}, "has the name 'eth1'"),
        (route(), "there is no interface 'eth0'"),
        ({**interface(), **route(hop="198.51.100.1")}, "is not on a network of eth0"),
        ({**interface(), **route(hop="x")}, "does not appear to be"),
        ({**interface(), ROUTES + "x": Route(destination="y")}, "has the destination 'y'"),
    ],
)
def test_an_invalid_configuration_is_rejected_as_a_whole(items: dict[str, Item], problem: str) -> None:
    # given a dataplane with an interface
    dataplane = Dataplane()
    dataplane.apply(interface("eth9"))
    # when an invalid configuration is applied / then the error names the problem, and nothing changes
    with pytest.raises(ConfigurationError, match=problem):
        dataplane.apply(items)
    assert dataplane.items == interface("eth9")


def test_the_valid_keys_of_a_full_state_are_applied_and_the_last_valid_values_are_kept() -> None:
    # given
    dataplane = Dataplane()
    dataplane.apply({**interface(), **interface("eth1", 1500, "10.1.0.1/16"), **route()})
    # when a full state has a bad value for eth0, none for eth1, and a route through eth1
    wanted = {**interface(mtu=1), **route(), **route("10.9.0.0/16", "10.1.0.9", "eth1")}
    problems = dataplane.apply_what_fits(wanted, {})
    # then eth0 keeps its last valid value, and with it the route through it
    assert set(problems) == {INTERFACES + "eth0", ROUTES + "10.9.0.0/16"}
    assert dataplane.items == {**interface(), **route()}


def test_a_dataplane_with_a_file_survives_its_agent(tmp_path: Path) -> None:
    items = {**interface(), **route()}
    Dataplane(tmp_path / "dataplane.json").apply(items)
    assert Dataplane(tmp_path / "dataplane.json").items == items
