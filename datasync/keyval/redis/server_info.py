"""The fields of a server's ``INFO`` on which a store depends."""

from __future__ import annotations

#: Policies under which the server deletes no key that has no time to live of its own.
_KEEPING = ("noeviction", "")


def server_facts(info: object) -> dict[str, object]:
    """Return the facts for ``StoreDriver.facts`` in the reply to ``INFO``."""
    text = info.decode(errors="replace") if isinstance(info, bytes) else str(info)
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    limit = _number(fields.get("maxmemory", ""))
    policy = fields.get("maxmemory_policy", "")
    return {
        "version": fields.get("valkey_version") or fields.get("redis_version", ""),
        "bytes": _number(fields.get("used_memory", "")),
        "bytes_limit": limit,
        "eviction": "" if policy in _KEEPING or not limit else f"maxmemory-policy {policy}",
        "durable": fields.get("aof_enabled") == "1",
    }


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
