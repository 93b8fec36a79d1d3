"""``datasync status``: of a REST server with its subscriptions, or of a store."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import output_option, write, write_records
from datasync.cli.targets import open_store, scheme_of, token
from datasync.errors import StoreError, UnsupportedError
from datasync.tools.records import json_line


@click.command()
@positionals("URL")
@output_option("value", "json")
def status(url: str, output: str) -> int:
    """Print the state of a store, or the subscriptions of a REST server.

    Of a REST server (http://host:port) also the keys that the subscriptions have not accepted. The variable
    DATASYNC_TOKEN has the token, if the server needs one. Exit code 1: a transport is down, or a subscription is
    failing, or the store has problems.

    \b
    Example: datasync status http://127.0.0.1:8080
    """
    return _server_status(url, output) if scheme_of(url) in ("http", "https") else _store_status(url, output)


def _store_status(url: str, output: str) -> int:
    started = time.monotonic()
    with open_store(url) as store:
        store.check()
        answered = time.monotonic() - started
        revision = 0
        with suppress(UnsupportedError):  # a gRPC server shows no keys
            revision = store.scan_page("", limit=1, keys_only=True).revision
        problems = dict(store.problems())
        shown: dict[str, object] = {
            "store": store.name,
            "state": "problems" if problems else "ready",
            "revision": revision,
            "answered_in_ms": round(answered * 1000, 1),
            "capabilities": sorted(one.value for one in store.capabilities),
        }
    if output == "json":
        write_records([shown | {"problems": problems}], output)
    else:
        write(f"{shown['store']}: {shown['state']}, revision {revision}".encode())
        write(f"  answered in {answered * 1000:.1f} ms".encode())
        write(f"  capabilities: {', '.join(one.value for one in sorted(store.capabilities, key=str))}".encode())
        for part, why in problems.items():
            write(f"  {part}: {why}".encode())
    return 1 if problems else 0


def _server_status(url: str, output: str) -> int:
    from datasync.restsync import Client

    with Client(url, token=token()) as client:
        document = client.server_status()
    sources = document["sources"]
    try:
        lines = [line for source in sources for line in _status_lines(source)]
        failing = {"failing"} & {one["state"] for source in sources for one in source["subscriptions"]}
        down = {"down", "closed"} & {source["state"] for source in sources}
    except (KeyError, TypeError, AttributeError):
        raise StoreError(f"{url}: the server has another version of the status") from None
    if output == "json":
        write(json_line(document))
    elif lines:
        click.echo("\n".join(lines))
    return 1 if failing or down else 0


def _status_lines(source: dict[str, Any]) -> list[str]:
    lines = [f"{source['name']}: {source['state']}, revision {source['revision']}"]
    for one in source["subscriptions"]:
        owed, due = one["owed"], one["resync_in"]
        resync = "" if due is None else f", RESYNC in {due} s"
        lines.append(f"  {one['name']}: {one['state']}, {one['pending']} pending, {owed['total']} owed{resync}")
        for key in owed["items"]:
            again = "not again until it changes" if key["next_in"] is None else f"again in {key['next_in']} s"
            lines.append(f"    {key['key']}: {key['error']}, attempts: {key['attempts']}, {again}")
        if owed["total"] > len(owed["items"]):
            lines.append(f"    and {owed['total'] - len(owed['items'])} more")
    return lines
