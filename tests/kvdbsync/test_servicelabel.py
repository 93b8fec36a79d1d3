"""Where an agent's keys live."""

from __future__ import annotations

from typing import Any

import pytest

from datasync.errors import InvalidArgumentError
from datasync.kvdbsync.servicelabel import ALL_AGENTS_PREFIX, agent_label, agent_prefix, different_agent_prefix


@pytest.mark.parametrize(
    ("argument", "variable", "label"),
    [
        (None, None, "vpp1"),
        (None, "", "vpp1"),
        (None, "node-7", "node-7"),
        ("mine", "node-7", "mine"),
        ("Büro", None, "Büro"),
    ],
)
def test_the_label_comes_from_the_argument_then_the_environment_then_the_default(
    monkeypatch: pytest.MonkeyPatch, argument: str | None, variable: str | None, label: str
) -> None:
    # given an environment
    monkeypatch.delenv("MICROSERVICE_LABEL", raising=False)
    if variable is not None:
        monkeypatch.setenv("MICROSERVICE_LABEL", variable)
    # then the nearest word counts
    assert agent_label(argument) == label
    assert agent_prefix(argument) == f"/vnf-agent/{label}/"


def test_another_agents_prefix_does_not_depend_on_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSERVICE_LABEL", "me")
    assert different_agent_prefix("you") == "/vnf-agent/you/"
    assert different_agent_prefix("you").startswith(ALL_AGENTS_PREFIX)


@pytest.mark.parametrize("label", ["", "a/b", "/", "a b", " a", "a\n", "\x00", "\udc80", 7, b"a"])
def test_c16_a_bad_label_is_refused(label: Any) -> None:
    for use in (agent_prefix, different_agent_prefix):
        with pytest.raises(InvalidArgumentError, match="the agent label"):
            use(label)


def test_c16_a_bad_label_in_the_environment_is_refused_by_the_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROSERVICE_LABEL", "a/b")
    with pytest.raises(InvalidArgumentError, match="MICROSERVICE_LABEL"):
        agent_prefix()
