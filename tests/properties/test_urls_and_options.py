"""URLs and options: whatever is typed, the answer is a store or a clear error (C16)."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datasync.errors import DatasyncError, InvalidArgumentError
from datasync.keyval import StoreURL, connect, parse_url
from datasync.keyval.urls import DRIVERS
from datasync.options import (
    WithClientLifetimeTTLOpt,
    WithPrefixOpt,
    WithTTLOpt,
    read_del_options,
    read_put_options,
    with_ttl,
)

SECRET = "Zq9-secret"

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ports = st.none() | st.integers(1, 65535)
names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,10}", fullmatch=True)
addresses = st.ip_addresses(v=6).map(str)
urls = st.builds(
    StoreURL,
    st.sampled_from([*DRIVERS, "other+one"]),
    st.lists(st.tuples(names | addresses, ports), max_size=3).map(tuple),
    st.none() | words,
    st.none() | words,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(lambda text: f"/{text}"),
    st.dictionaries(words, words, max_size=3),
)


def spelled(url: StoreURL) -> str:
    """*url* as text."""
    hosts = [f"[{host}]" if ":" in host else quote(host, safe="") for host, _ in url.hosts]
    listing = ",".join(
        host if port is None else f"{host}:{port}" for host, (_, port) in zip(hosts, url.hosts, strict=True)
    )
    user = quote(url.user or "", safe="")
    userinfo = user if url.password is None else f"{user}:{quote(url.password, safe='')}"
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in url.query.items())
    at = "" if url.user is None else f"{userinfo}@"
    return f"{url.scheme}://{at}{listing}{quote(url.path)}" + (f"?{query}" if query else "")


@given(urls.filter(lambda url: url.user is not None or url.password is None))
def test_every_url_comes_back_from_its_text(url: StoreURL) -> None:
    assert parse_url(spelled(url)) == url


@given(st.text(max_size=40) | st.from_regex(r"(sqlite|etcd|memory)://[^\0]{0,30}", fullmatch=True))
@example("etcd://[")
@example("etcd://h:99999999999999999999")
@example("sqlite:///%zz")
@example("sqlite:///\udc80")
@example("etcd://%ff")
@example("memory://a?%=")
@example("memory://a?x=1&x=2")
@example("://")
@example("")
def test_c16_no_text_gives_anything_but_an_url_or_our_error(text: str) -> None:
    with contextlib.suppress(InvalidArgumentError):
        parse_url(text)


@given(st.integers() | st.none() | st.binary() | st.lists(st.text()))
def test_c16_what_is_no_text_is_refused(url: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        connect(url)


@given(st.sampled_from(["etcd", "redis", "memory", "sqlite", "consull"]), st.text(max_size=20))
@example("etcd", "[")
@example("etcd", "h:0")
@example("etcd", "h?tls")
@example("etcd", "h#")
def test_c16_a_password_is_in_no_error(scheme: str, rest: str) -> None:
    # given a URL with a password and whatever else / when it is read and, without a server, opened
    told = ""
    try:
        parsed = parse_url(f"{scheme}://me:{SECRET}@{rest}")
        told = repr(parsed)
        if scheme != "etcd":
            connect(f"{scheme}://me:{SECRET}@{rest}").close()
    except DatasyncError as error:
        told += f"{error!r} {error.__cause__!r}"
    # then what is told does not hold the password
    assert SECRET not in told


@given(st.floats(allow_nan=True) | st.integers() | st.booleans() | st.text() | st.none())
def test_c16_a_ttl_is_a_finite_number_above_zero_or_refused(ttl: Any) -> None:
    good = type(ttl) in (int, float) and 0 < ttl < float("inf")
    try:
        option = with_ttl(ttl)
    except InvalidArgumentError:
        assert not good
    else:
        assert good
        assert read_put_options([option]).ttl == ttl


options = st.sampled_from([WithTTLOpt(1), WithTTLOpt(2), WithClientLifetimeTTLOpt(), WithPrefixOpt(), None, "x", 3])


@given(st.lists(options, max_size=3))
def test_c16_options_are_folded_or_refused(opts: list[Any]) -> None:
    # given any list of options / when they are read as options of put
    try:
        settings = read_put_options(opts)
    except InvalidArgumentError:
        # then they were refused for a reason: a stranger, or more than one lifetime
        assert len(opts) > 1 or not isinstance(opts[0], (WithTTLOpt, WithClientLifetimeTTLOpt))
    else:
        assert settings.ttl == next((opt.ttl for opt in opts if isinstance(opt, WithTTLOpt)), None)
        assert len(opts) <= 1
    # and as options of delete
    try:
        assert read_del_options(opts) is bool(opts)
        assert opts in ([], [WithPrefixOpt()])
    except InvalidArgumentError:
        assert opts not in ([], [WithPrefixOpt()])
