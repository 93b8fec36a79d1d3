"""The table of prefixes against a plain list of them (C5)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datasync.syncbase.prefixes import PrefixTable

keys = st.text("ab/", max_size=5)


@given(st.lists(st.tuples(st.booleans(), keys)), keys)
def test_c5_a_table_finds_the_prefixes_that_a_list_would(steps: list[tuple[bool, str]], key: str) -> None:
    # given prefixes that were added and removed
    table: PrefixTable[str] = PrefixTable()
    expected: dict[str, None] = {}
    for added, prefix in steps:
        if added:
            table.set(prefix, f"value of {prefix}")
            expected[prefix] = None
        else:
            table.remove(prefix)
            expected.pop(prefix, None)
    # when a key is looked up / then all its prefixes are found, shortest first, and the longest of them
    matching = sorted((prefix for prefix in expected if key.startswith(prefix)), key=len)
    assert table.matching(key) == [f"value of {prefix}" for prefix in matching]
    assert table.longest(key) == (matching[-1] if matching else None)
    assert set(table) == set(expected)
    assert len(table) == len(expected)
    assert all(table.get(prefix) is not None and prefix in table for prefix in expected)


@given(st.sets(keys, max_size=4), st.lists(keys, max_size=4, unique=True))
def test_c5_many_keys_are_looked_up_at_once_only_where_all_have_the_same_prefixes(
    prefixes: set[str], several: list[str]
) -> None:
    # given some prefixes
    table: PrefixTable[str] = PrefixTable()
    for prefix in prefixes:
        table.set(prefix, prefix)
    # when several keys are looked up at once
    found = table.matching_all(several)
    # then each of them has what was found; there is nothing to be found for no keys, and always something for one
    if found is not None:
        assert all(table.matching(key) == found for key in several)
    assert found == [] if not several else found is not None or len(several) > 1


def test_c5_one_look_tells_of_all_keys_under_one_prefix() -> None:
    table: PrefixTable[int] = PrefixTable()
    table.set("key/", 1)
    assert table.matching_all([f"key/{number}" for number in (3, 1, 2)]) == [1]
    assert table.matching_all(["key/3", "other", "key/1"]) is None


@given(st.sets(keys, max_size=4), st.lists(keys, max_size=4, unique=True))
def test_c5_keys_are_grouped_under_the_longest_prefix_of_each(prefixes: set[str], several: list[str]) -> None:
    table: PrefixTable[None] = PrefixTable()
    for prefix in prefixes:
        table.set(prefix, None)
    expected: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    several = sorted(several)
    for key in several:
        if (longest := table.longest(key)) is not None:
            expected[longest].append(key)
    assert table.grouped(several) == expected


def test_c5_the_empty_prefix_matches_every_key() -> None:
    table: PrefixTable[int] = PrefixTable()
    table.set("", 1)
    assert table.longest("anything") == ""
    assert table.matching("") == [1]


def test_a_copy_has_a_life_of_its_own() -> None:
    # given a copy
    table: PrefixTable[int] = PrefixTable()
    table.set("a", 1)
    copy = table.copy()
    # when the original changes / then the copy does not
    table.remove("a")
    table.set("bb", 2)
    assert list(copy) == ["a"]
    assert copy.longest("a") == "a"
    assert copy.longest("bb") is None


def test_setting_a_prefix_again_replaces_its_value() -> None:
    table: PrefixTable[int] = PrefixTable()
    table.set("a", 1)
    table.set("a", 2)
    assert table.matching("ab") == [2]
    table.remove("a")
    assert table.matching("ab") == []
