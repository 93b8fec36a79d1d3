"""Values of a view cannot be changed by accident, and are otherwise what they look like."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from datasync.consumer.view.frozen import FrozenDict, FrozenList, freeze, same, thaw

VALUE = {"on": True, "rate": {"a": 1, "b": [1, 2, {"c": None}]}, "names": ["x"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.__setitem__("on", False),
        lambda value: value.__delitem__("on"),
        lambda value: value.update(on=False),
        lambda value: value.pop("on"),
        lambda value: value.popitem(),
        lambda value: value.setdefault("new", 1),
        lambda value: value.clear(),
        lambda value: value.__ior__({"on": False}),
        lambda value: value["rate"]["b"].append(3),
        lambda value: value["rate"]["b"][2].__setitem__("c", 1),
        lambda value: value["names"].__setitem__(0, "y"),
        lambda value: value["names"].__iadd__(["y"]),
        lambda value: value["names"].sort(),
        lambda value: value["names"].extend("y"),
        lambda value: value["names"].__imul__(2),
        lambda value: value["names"].__delitem__(0),
    ],
)
def test_c20_a_frozen_value_refuses_every_change(change: Callable[[Any], object]) -> None:
    # given
    value = freeze(VALUE)
    # when / then
    with pytest.raises(TypeError, match="cannot be changed"):
        change(value)
    assert value == VALUE


def test_c20_a_frozen_value_is_written_as_json_compared_and_pickled_as_an_ordinary_one() -> None:
    value = freeze(VALUE)
    assert json.dumps(value) == json.dumps(VALUE)
    assert value == VALUE
    assert type(value) is FrozenDict
    assert type(value["names"]) is FrozenList
    restored = pickle.loads(pickle.dumps(value))
    assert (type(restored), restored) == (FrozenDict, VALUE)
    assert copy.copy(value) is value


@pytest.mark.parametrize("copied", [copy.deepcopy, thaw])
def test_c20_a_deep_copy_can_be_changed(copied: Callable[[Any], Any]) -> None:
    # given
    value = copied(freeze(VALUE))
    # when
    value["rate"]["b"].append(3)
    # then
    assert value["rate"]["b"] == [1, 2, {"c": None}, 3]
    assert {type(value), type(value["rate"])} == {dict}


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"on": 1}, {"on": True}, False),
        ({"on": 1}, {"on": 1.0}, False),
        ([0], [False], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1, 2], [1], False),
        ("x", "x", True),
        (None, 0, False),
    ],
)
def test_c20_a_difference_is_one_of_values_or_of_their_types(one: Any, other: Any, equal: bool) -> None:
    assert same(freeze(one), freeze(other)) is equal
