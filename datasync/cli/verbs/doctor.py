"""``datasync doctor``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from uuid import uuid4

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import coloured, output_option, write, write_records
from datasync.cli.targets import open_store, scheme_of
from datasync.errors import (
    DatasyncError,
    InvalidArgumentError,
    MissingExtraError,
    PermissionDenied,
    StoreConnectionError,
    UnsupportedError,
)
from datasync.keyval.api import Store
from datasync.keyval.types import Capability

#: How a finding is: fine, worth a look, or broken.
OK, WARN, FAIL = "ok", "warn", "fail"
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
#: Seconds by which clocks may differ, and milliseconds of a read, before they are worth a look.
CLOCK_SKEW, SLOW_READ = 2.0, 100.0
#: Reads whose time is measured.
READS = 5
#: The share of a limit from which it is worth a look.
NEARLY_FULL = 0.8
#: Where --write puts its key.
PROBE = "datasync-doctor/"


class Finding(NamedTuple):
    """The result of one check, and the advice for it."""

    check: str
    state: str
    found: str
    advice: str = ""


@click.command()
@positionals("URL")
@click.option("--prefix", default="", help="Check the right to read below it, not of the whole store.")
@click.option("--write", "writes", is_flag=True, help=f"Also put and delete a key, below the prefix and {PROBE}.")
@output_option("value", "json")
def doctor(url: str, prefix: str, writes: bool, output: str) -> int:
    """Check a store or server: reachable, rights, versions, clock, latency, limits; each with what to do.

    Nothing is written without --write. Exit code 1: something is broken.

    \b
    Example: datasync doctor redis://127.0.0.1:6379/0 --write
    """
    failed = False
    for finding in examine(url, prefix, writes):
        failed = failed or finding.state == FAIL
        if output == "json":
            write_records([finding._asdict()], output)
            continue
        state = coloured(finding.state.ljust(4).encode(), _COLOURS[finding.state])
        write(state + f"  {finding.check}: {finding.found}".encode(errors="replace"))
        if finding.advice:
            write(f"      {finding.advice}".encode(errors="replace"))
    return 1 if failed else 0


def examine(url: str, prefix: str, writes: bool) -> Iterator[Finding]:
    """Yield the findings about the store at *url*, one after the other."""
    try:
        store = open_store(url)
    except MissingExtraError as error:
        yield Finding("library", FAIL, str(error), "install it with the command above")
        return
    except InvalidArgumentError as error:
        yield Finding("url", FAIL, str(error), "write the URL as datasync --help shows")
        return
    except DatasyncError as error:
        yield Finding("open", FAIL, str(error), "check that the path or address is right, and who may read it")
        return
    with store:
        yield Finding("url", OK, store.name)
        reachable = _reachable(store)
        yield reachable
        if reachable.state == FAIL:
            return
        if scheme_of(url) in ("grpc", "grpcs"):
            yield Finding("read", WARN, "a gRPC server shows no keys", "check the store behind it too")
            return
        yield from _reading(store, prefix)
        if writes:
            yield _writing(store, prefix)
        yield from _facts(store)
        yield from (Finding("data", WARN, f"{part}: {why}", "repair it") for part, why in store.problems().items())
        missing = {Capability.HISTORY, Capability.TXN, Capability.CAS} - store.capabilities
        listed = ", ".join(sorted(one.value for one in missing))
        if missing:
            yield Finding("features", WARN, f"this store has no {listed}", "choose another store if you need them")
        else:
            yield Finding("features", OK, "history, transactions and conditions")


def _reachable(store: Store) -> Finding:
    try:
        store.check()
    except PermissionDenied as error:
        return Finding("reachable", FAIL, str(error), "check user, password, token or certificate")
    except StoreConnectionError as error:
        return Finding("reachable", FAIL, str(error), "check that the server runs, its address, and firewalls between")
    except DatasyncError as error:
        return Finding("reachable", FAIL, str(error), "correct what the line above names; see also the log")
    return Finding("reachable", OK, "the server answers")


def _reading(store: Store, prefix: str) -> Iterator[Finding]:
    times = []
    try:
        for _ in range(READS):
            started = time.perf_counter()
            next(iter(store.scan_page(prefix, limit=1, keys_only=True)), None)
            times.append((time.perf_counter() - started) * 1000)
    except PermissionDenied as error:
        yield Finding("read", FAIL, str(error), "grant the right to read, or name what may be read with --prefix")
        return
    except DatasyncError as error:
        yield Finding("read", FAIL, str(error), "see the log of the server")
        return
    yield Finding("read", OK, f"keys below {prefix!r} can be read" if prefix else "keys can be read")
    middle = sorted(times)[READS // 2]
    slow = "check the network between, and the load of the server" if middle > SLOW_READ else ""
    yield Finding("latency", WARN if slow else OK, f"a read takes {middle:.1f} ms ({READS} reads)", slow)


def _writing(store: Store, prefix: str) -> Finding:
    key = f"{prefix}{PROBE}{uuid4().hex}"
    broker = store.new_broker()
    try:
        broker.put(key, b"1")
        broker.delete(key)
    except PermissionDenied as error:
        return Finding("write", FAIL, str(error), "grant the right to write, or use the store read-only")
    except UnsupportedError as error:
        return Finding("write", WARN, str(error), "use another store if you need to write")
    except DatasyncError as error:
        return Finding("write", FAIL, str(error), f"delete {key!r} if it exists")
    return Finding("write", OK, f"a key below {prefix + PROBE!r} was put and deleted")


def _facts(store: Store) -> Iterator[Finding]:
    """Judge what the server says about itself."""
    before = time.time()
    try:
        facts = store.facts()
    except DatasyncError as error:
        yield Finding("server", WARN, str(error), "grant the right to ask for its state, to have it checked here")
        return
    after = time.time()
    if "version" in facts:
        yield Finding("version", OK, str(facts["version"]))
    clock = facts.get("time")
    if isinstance(clock, (int, float)):
        skew = max(before - clock - 1, clock - after, 0.0)  # a header has whole seconds
        found = f"differs by about {skew:.1f} s from the server's" if skew else "agrees with the server's"
        bad = skew > CLOCK_SKEW
        yield Finding("clock", WARN if bad else OK, found, "run a time service on both machines" if bad else "")
    yield from _limits(facts)
    for name, advice in (("eviction", "set maxmemory-policy to noeviction: an evicted key is a silent delete"),):
        if facts.get(name):
            yield Finding(name, FAIL, f"the server may delete keys ({facts[name]})", advice)
        elif name in facts:
            yield Finding(name, OK, "the server deletes no keys by itself")
    if facts.get("alarms"):
        yield Finding("alarms", FAIL, str(facts["alarms"]), "free space, then disarm the alarm")
    if facts.get("durable") is False:
        yield Finding(
            "durability", WARN, "a crash of the server loses the last writes", "switch on appendonly, or fsync"
        )


def _limits(facts: Mapping[str, object]) -> Iterator[Finding]:
    size, limit = facts.get("bytes"), facts.get("bytes_limit")
    if not isinstance(size, int):
        return
    found = f"{size:,} bytes" + (f" of {limit:,}" if isinstance(limit, int) and limit else "")
    full = isinstance(limit, int) and 0 < limit * NEARLY_FULL < size
    yield Finding("size", WARN if full else OK, found, "raise the limit, or delete what is not needed" if full else "")
