"""A key-value store as a transport: what is written to it arrives as events."""

# The transport
from datasync.kvdbsync.plugin import Plugin

# Where an agent's keys live
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
    # Where an agent's keys live
    "ALL_AGENTS_PREFIX",
    "DEFAULT_LABEL",
    "LABEL_VARIABLE",
    "agent_label",
    "agent_prefix",
    "different_agent_prefix",
]
