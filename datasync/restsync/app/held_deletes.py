"""The deletes that views and reconcilers of this process hold, and their release.

Source: contract C20, C22.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from datasync.restsync.problems import Problem
from datasync.runtime import monitoring
from datasync.runtime.logs import get_logger
from datasync.runtime.wording import counted

log = get_logger(__name__)

#: Held keys of one holder that the page lists.
HELD_SHOWN = 20


def held_deletes() -> list[dict[str, Any]]:
    """Return each holder with its kind and name, its first keys, and ``seen``, which a release repeats."""
    return [
        {"kind": kind, "name": name, "total": len(keys), "keys": keys[:HELD_SHOWN], "seen": _digest(keys)}
        for kind, name, keys, _ in _holders()
        if keys
    ]


def release(kind: str, name: str, seen: str) -> int:
    """Let the deletes of the holder go on whose keys are those that were *seen*; return their number.

    Raises:
      Problem: No holder of this name holds anything, or it holds other keys by now: nothing was released.
    """
    found = [(keys, holder) for its_kind, its_name, keys, holder in _holders() if (its_kind, its_name) == (kind, name)]
    holding = [(keys, holder) for keys, holder in found if keys]
    if not holding:
        raise Problem("not-found", f"no {kind[:40]} {name[:200]!r} of this process holds deletes")
    for keys, holder in holding:
        if _digest(keys) == seen:
            holder.release()
            log.warning("%s %r: %s released over HTTP", kind, name, counted(len(keys), "held delete"))
            return len(keys)
    raise Problem("conflict", f"the {kind} {name!r} holds other deletes by now: look at them first")


def _holders() -> Iterator[tuple[str, str, list[str], Any]]:
    for view in monitoring.enrolled("view"):
        yield "view", view.name, sorted(view.table.held), view
    for meter in monitoring.enrolled("reconciler"):
        yield "reconciler", meter.name, sorted(meter.held), meter


def _digest(keys: list[str]) -> str:
    text = "".join(f"{len(key)}:{key}" for key in keys)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
