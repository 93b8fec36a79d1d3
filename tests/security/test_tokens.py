"""Tokens are compared in constant time, all of them, whatever they look like: by structure, for time proves little."""

from __future__ import annotations

import ast
import hmac
import inspect
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

from datasync.grpcsync.protocol import authorization, token_of
from datasync.restsync.app.requests import check_authorized
from datasync.restsync.problems import Problem
from datasync.runtime import tokens as module
from datasync.runtime.tokens import TokenCheck
from tests.conftest import CANARY
from tests.security.fuzz.target import refuse_secrets

TOKENS = [f"{CANARY}-1", f"{CANARY}-22", f"{CANARY}-333"]


def rest(tokens: list[str], shown: str) -> bool:
    """Whether the REST server lets *shown* in."""
    environ = EnvironBuilder(headers={"Authorization": shown}).get_environ()
    try:
        check_authorized(TokenCheck(tokens), environ)
        return True
    except Problem as problem:
        said = f"{problem} {problem.detail} {problem.headers}"
    refuse_secrets(said)
    return False


def grpc(tokens: list[str], shown: str) -> bool:
    """Whether the gRPC server does."""
    return TokenCheck(tokens).accepts(token_of([("authorization", shown)]))


WAYS = pytest.mark.parametrize("accepts", [rest, grpc])


@WAYS
@pytest.mark.parametrize("token", TOKENS)
def test_each_token_opens_it(accepts: Any, token: str) -> None:
    assert accepts(TOKENS, f"Bearer {token}")


@WAYS
@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {CANARY}",
        f"Bearer {CANARY}-",
        f"Bearer {CANARY}-11",
        f"Bearer {CANARY}-2",
        f"Bearer {CANARY.upper()}-1",
        f"Basic {CANARY}-1",
        f"{CANARY}-1",
        f"Bearer {CANARY}-1\u00e9",
        f"Bearer {CANARY}-\u00b9",
        f"Bearer {'x' * 100_000}",
    ],
)
def test_nothing_else_does_whatever_its_length_and_letters(accepts: Any, shown: str) -> None:
    assert not accepts(TOKENS, shown)


def test_what_no_header_could_say_opens_nothing_over_grpc_either() -> None:
    for shown in ("Bearer \ud800", b"Bearer \xff", b"Bearer " + TOKENS[0].encode()[:-1]):
        assert not TokenCheck(TOKENS).accepts(token_of([("authorization", shown)]))
    assert TokenCheck(TOKENS).accepts(token_of([("authorization", b"Bearer " + TOKENS[0].encode())]))


@WAYS
@pytest.mark.parametrize("shown", [f"Bearer {TOKENS[0]}", "Bearer wrong", ""])
def test_every_token_is_compared_by_compare_digest_also_after_a_match(
    monkeypatch: pytest.MonkeyPatch, accepts: Any, shown: str
) -> None:
    compared = []
    real = hmac.compare_digest

    def noted(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(module.hmac, "compare_digest", noted)
    accepts(TOKENS, shown)
    assert len(compared) == len(TOKENS)
    assert all(type(one) is type(other) is bytes for one, other in compared)


def test_nothing_about_a_token_is_compared_in_any_other_way() -> None:
    # `" " in token` checks a token of our own.
    allowed = {"' ' in token"}
    secret = {"token", "tokens", "given", "offered", "shown", "_tokens", "_accepted"}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Compare) or any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
            continue
        names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        names |= {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
        text = ast.unparse(node)
        if "compare_digest" in text:
            continue
        assert not names & secret or text in allowed, text


def test_the_metadata_that_shows_a_token_is_all_that_does() -> None:
    assert authorization(TOKENS[0]) == ("authorization", f"Bearer {TOKENS[0]}")
    assert CANARY not in f"{TokenCheck(TOKENS)!r}"
