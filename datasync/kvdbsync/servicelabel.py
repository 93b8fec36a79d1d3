"""The prefix of an agent's keys in a store that many agents share: ``/vnf-agent/<label>/``.

Source: cn-infra ``servicelabel``.
"""

from __future__ import annotations

import os

from datasync.checks import check_key
from datasync.errors import InvalidArgumentError

#: Environment variable for this agent's label.
LABEL_VARIABLE = "MICROSERVICE_LABEL"
#: The label if neither the argument nor the environment sets one.
DEFAULT_LABEL = "vpp1"
#: The common prefix of the keys of all agents.
ALL_AGENTS_PREFIX = "/vnf-agent/"


def agent_label(label: str | None = None) -> str:
    """Return *label*, or the label of the environment, or ``DEFAULT_LABEL``.

    Raises:
      InvalidArgumentError: The label is empty, or contains a slash, a space or an unprintable character.
    """
    if label is not None:
        return _checked("the agent label", label)
    # Shells and container files leave a variable empty to mean that it is not set.
    return _checked(LABEL_VARIABLE, os.environ.get(LABEL_VARIABLE) or DEFAULT_LABEL)


def agent_prefix(label: str | None = None) -> str:
    """Return the prefix of this agent's keys, ``/vnf-agent/<label>/``; see :func:`agent_label`."""
    return different_agent_prefix(agent_label(label))


def different_agent_prefix(label: str) -> str:
    """Return the prefix of the keys of the agent *label*, which may be another agent."""
    return f"{ALL_AGENTS_PREFIX}{_checked('the agent label', label)}/"


def _checked(what: str, label: str) -> str:
    check_key(label, what)
    # With a slash in a label, one agent's prefix could be the start of another agent's keys.
    if "/" in label or not label.isprintable() or any(map(str.isspace, label)):
        raise InvalidArgumentError(f"{what} must not contain a slash, space or unprintable character: {label!r}")
    return label
