"""A key-value store as a transport: its changes arrive as events."""

from datasync.kvdbsync.plugin import Plugin
from datasync.kvdbsync.servicelabel import (
    ALL_AGENTS_PREFIX,
    DEFAULT_LABEL,
    LABEL_VARIABLE,
    agent_label,
    agent_prefix,
    different_agent_prefix,
)

__all__ = [
    # The transport
    "Plugin",
    # The prefix of an agent's keys
    "ALL_AGENTS_PREFIX",
    "DEFAULT_LABEL",
    "LABEL_VARIABLE",
    "agent_label",
    "agent_prefix",
    "different_agent_prefix",
]
