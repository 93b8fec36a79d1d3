"""Options of put and delete (C16)."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync.errors import InvalidArgumentError
from datasync.options import (
    DelOption,
    PutOption,
    PutSettings,
    WithTTLOpt,
    read_del_options,
    read_put_options,
    with_client_lifetime_ttl,
    with_prefix,
    with_ttl,
)


def test_the_markers_tell_put_from_delete() -> None:
    assert isinstance(with_ttl(1), PutOption)
    assert isinstance(with_client_lifetime_ttl(), PutOption)
    assert isinstance(with_prefix(), DelOption)
    assert not isinstance(with_prefix(), PutOption)


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_a_ttl_is_seconds_or_a_timedelta(seconds: float) -> None:
    assert with_ttl(seconds) == WithTTLOpt(seconds)
    assert read_put_options([with_ttl(timedelta(seconds=60))]).ttl == 60.0
    assert read_put_options([with_ttl(seconds)]).ttl == seconds


@pytest.mark.parametrize(
    "bad", [0, -1, -0.0, math.nan, math.inf, -math.inf, True, False, None, "5", b"5", timedelta(0), timedelta(-1)]
)
def test_c16_a_useless_ttl_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="TTL"):
        with_ttl(bad)
    if not isinstance(bad, timedelta):
        with pytest.raises(InvalidArgumentError, match="TTL"):
            WithTTLOpt(bad)


def test_options_add_up() -> None:
    assert read_put_options([]) == PutSettings(None, False)
    assert read_put_options([with_client_lifetime_ttl()]) == PutSettings(None, True)
    assert read_del_options([]) is False
    assert read_del_options([with_prefix()]) is True


@pytest.mark.parametrize(
    ("read", "opts", "says"),
    [
        (read_put_options, [with_ttl(1), with_client_lifetime_ttl()], "not both"),
        (read_put_options, [with_ttl(1), with_ttl(2)], "twice"),
        (read_put_options, [with_client_lifetime_ttl(), with_client_lifetime_ttl()], "twice"),
        (read_put_options, [with_prefix()], r"put\(\).*WithPrefixOpt"),
        (
            read_put_options,
            [PutOption()],
            r"takes the options with_ttl\(\) and with_client_lifetime_ttl\(\), not PutOption",
        ),
        (read_put_options, ["canary-2"], "str"),
        (read_put_options, [None], "NoneType"),
        (read_del_options, [with_ttl(1)], r"delete\(\).*WithTTLOpt"),
        (read_del_options, [with_prefix(), with_prefix()], "twice"),
        (read_del_options, ["canary-2"], "str"),
    ],
)
def test_c16_unknown_doubled_and_contradicting_options_are_refused_by_name(
    read: Any, opts: list[Any], says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        read(opts)
    assert "canary-2" not in str(caught.value)


def test_options_are_frozen() -> None:
    with pytest.raises(AttributeError):
        with_ttl(1).ttl = 2  # type: ignore[misc]
