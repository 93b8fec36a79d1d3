"""The registry that this process shares with itself."""

from __future__ import annotations

import os
import sys

from datasync.syncbase.registry import Registry

#: The registry of the process, for sources and subscribers that do not care to pass one around. Source: Go
#: ``local.DefaultRegistry``.
DEFAULT_REGISTRY = Registry("local")


def _renew_in_child() -> None:
    # A forked child gets one of its own under the same name, so that a pre-forking server may import this before it
    # forks. Whoever took the parent's object out of the module before the fork gets ForkedError from it.
    global DEFAULT_REGISTRY
    DEFAULT_REGISTRY = Registry("local")
    package = sys.modules.get("datasync.kvdbsync.local")
    if package is not None:
        package.DEFAULT_REGISTRY = DEFAULT_REGISTRY  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
