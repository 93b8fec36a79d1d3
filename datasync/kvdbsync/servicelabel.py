"""Where an agent's keys live in a store that many agents share: ``/vnf-agent/<label>/``.

Source: cn-infra ``servicelabel``.
"""

from __future__ import annotations

import os

from datasync.errors import InvalidArgumentError

#: Environment variable with this agent's label.
LABEL_VARIABLE = "MICROSERVICE_LABEL"
#: The label when neither argument nor environment has one.
DEFAULT_LABEL = "vpp1"
#: What the keys of every agent start with.
ALL_AGENTS_PREFIX = "/vnf-agent/"


def agent_label(label: str | None = None) -> str:
    """*label*, else that of the environment, else ``DEFAULT_LABEL``.

    Raises:
      InvalidArgumentError: It is empty, or has a slash, a space or something unprintable in it.
    """
    if label is not None:
        return _checked("the agent label", label)
    # Set but empty is how a shell or a container file says "not set".
    return _checked(LABEL_VARIABLE, os.environ.get(LABEL_VARIABLE) or DEFAULT_LABEL)


def agent_prefix(label: str | None = None) -> str:
    """What this agent's keys start with: ``/vnf-agent/<label>/``; see :func:`agent_label`."""
    return different_agent_prefix(agent_label(label))


def different_agent_prefix(label: str) -> str:
    """What the keys of the agent *label* start with, whoever this agent is."""
    return f"{ALL_AGENTS_PREFIX}{_checked('the agent label', label)}/"


def _checked(what: str, label: object) -> str:
    if not isinstance(label, str):
        raise InvalidArgumentError(f"{what} must be a string, not {type(label).__name__}")
    if not label:
        raise InvalidArgumentError(f"{what} must not be empty")
    # With a slash, one agent's prefix could be the start of another agent's key.
    if "/" in label or not label.isprintable() or any(map(str.isspace, label)):
        raise InvalidArgumentError(f"{what} must have no slash, space or unprintable character in it: {label!r}")
    return label
