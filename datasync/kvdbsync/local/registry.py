"""The default registry of the process."""

from __future__ import annotations

import os
import sys

from datasync.syncbase.registry import Registry

#: The registry for sources and subscribers that are not given another one. Source: Go ``local.DefaultRegistry``.
DEFAULT_REGISTRY = Registry("local")


def _renew_in_child() -> None:
    # A forked child gets a registry of its own under the same name, so that a pre-forking server may import this module
    # before it forks. Code that holds the parent's object from before the fork gets ForkedError.
    global DEFAULT_REGISTRY
    DEFAULT_REGISTRY = Registry("local")
    package = sys.modules.get("datasync.kvdbsync.local")
    if package is not None:
        package.DEFAULT_REGISTRY = DEFAULT_REGISTRY  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
