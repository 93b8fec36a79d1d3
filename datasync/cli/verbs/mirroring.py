"""``datasync mirror``: keeps a prefix of one store equal to a prefix of another one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from types import FrameType

import click

from datasync.cli.targets import refuse_server, token
from datasync.errors import InvalidArgumentError, MissingExtraError, NotReadyError, StoreError
from datasync.keyval.api import Store
from datasync.keyval.urls import connect, parse_url
from datasync.metrics.systemd import SystemdNotifier
from datasync.runtime.wording import counted
from datasync.tools.mirror import MirrorState, MirrorStatus, PrefixMirror
from datasync.tools.mirror.writer import MAX_OPS

#: Seconds between two looks at a mirror that runs, and after which a copy tells its progress.
LOOK_EVERY = 0.25
TELL_EVERY = 1.0
FAILED = 1


def _most(context: click.Context, parameter: click.Parameter, value: str) -> int | float | None:
    """Read ``50%``, ``100`` or ``none``."""
    try:
        if value == "none":
            return None
        return float(value[:-1]) / 100 if value.endswith("%") else int(value)
    except ValueError:
        raise click.BadParameter("write a number of keys, a share such as 50%, or none") from None


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--prefix", default="", help="Copy the keys of SRC that start with this.")
@click.option("--dest-prefix", default=None, help="Put it in front of the keys in DST, in place of --prefix.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these keys alone, as in 'tmp/*'; repeatable.")
@click.option("--delete/--no-delete", default=False, help="Delete keys that SRC does not have. Default: keep them.")
@click.option(
    "--max-delete", default="50%", callback=_most, metavar="N|P%|none", help="Hold more deletes at once. Default: 50%."
)
@click.option("--ttl", type=click.Choice(["drop", "copy", "refuse"]), default="drop", help="Keys that expire.")
@click.option("--verify-every", type=float, metavar="SECONDS", help="Compare again and repair.")
@click.option(
    "--max-txn-ops",
    type=int,
    default=MAX_OPS,
    metavar="N",
    show_default=True,
    help="The most keys of one transaction of DST.",
)
@click.option("--lock-ttl", type=float, metavar="SECONDS", help="Take over from a dead mirror after this time.")
@click.option("--health", metavar="HOST:PORT", help="Serve /livez, /readyz, /healthz and /metrics. Port 0: a free one.")
@click.option("--once", is_flag=True, help="End when everything is copied.")
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
def mirror(
    source: str,
    destination: str,
    prefix: str,
    dest_prefix: str | None,
    exclude: tuple[str, ...],
    delete: bool,
    max_delete: int | float | None,
    ttl: str,
    verify_every: float | None,
    max_txn_ops: int,
    lock_ttl: float | None,
    health: str | None,
    once: bool,
    dry_run: bool,
) -> int:
    """Keep a prefix of DST equal to a prefix of SRC, until Ctrl-C.

    It goes on when either end is lost. SIGUSR1 pauses it, SIGUSR2 lets it go on. A unit of systemd has Type=notify, and
    is ready after the first copy. With --health, DATASYNC_TOKEN has the token of /healthz and /metrics, if they are to
    need one; with the extra metrics, /metrics is for Prometheus. Exit code 1, with --once: keys were
    refused, or deletes are held.

    \b
    Example: datasync mirror etcd://old:2379 postgres://new/app --prefix config/ --once
    Example: datasync mirror file:///srv/config etcd://host:2379 --dest-prefix config/ --delete
    """
    if health is not None and dry_run:
        raise InvalidArgumentError("--health is for a mirror that runs, not for --dry-run")
    for url in (source, destination):
        refuse_server(url, "mirror", "its records and transactions are those of a store; give the URL of its store")
    _prepare_health(health)
    with _open(source) as first, _open(destination, create=not dry_run) as second:
        job = PrefixMirror(
            first,
            second,
            prefix,
            dest_prefix,
            exclude=exclude,
            delete=delete,
            max_delete=max_delete,
            ttl=ttl,
            verify_every=verify_every,
            max_txn_ops=max_txn_ops,
            lock_ttl=lock_ttl,
            dry_run=dry_run,
        )
        if dry_run:
            return _print_differences(job, delete)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _pause_by_signals(job)
        with job, _serve_health(health):  # in this order: without a source, the process would pass as ready
            return _follow(job, once)


def _print_differences(job: PrefixMirror, delete: bool) -> int:
    with job:
        _wait_copied(job, _Teller())
    found = job.differences
    assert found is not None
    lines = [("+", key) for key in found.missing] + [("~", key) for key in found.changed]
    lines += [("-", key) for key in found.extra] if delete else []
    for sign, key in sorted(lines, key=lambda line: line[1]):
        click.echo(f"{sign} {key}")
    held = len(job.status().held)
    extra = f"{'held' if held else 'to delete' if delete else 'only there'}: {len(found.extra)}"
    _say(f"missing: {len(found.missing)}, changed: {len(found.changed)}, {extra}")
    return FAILED if held else 0


def _follow(job: PrefixMirror, once: bool) -> int:
    teller = _Teller()
    try:
        _wait_copied(job, teller)
        status = job.status()
        if once:
            teller.tell(status)
            return FAILED if status.held or any(one.owed for one in status.source.subscriptions.values()) else 0
        with SystemdNotifier():  # now, and not at the start: the unit is ready when everything was copied
            while job.failure is None:
                teller.tell(job.status())
                time.sleep(LOOK_EVERY)
        raise job.failure
    except KeyboardInterrupt:
        _say(f"ended at revision {job.status().revision}")
        return 0


def _prepare_health(address: str | None) -> None:
    """Check *address*, and count for metrics from here on."""
    if address is None:
        return
    from datasync.restsync.serve import split_address

    split_address(address)
    with suppress(MissingExtraError):  # without the extra, /metrics says so
        from datasync.metrics.prometheus import install

        install()


def _serve_health(address: str | None) -> AbstractContextManager[object]:
    """Serve the probes and metrics on *address*, if there is one, until the result ends."""
    if address is None:
        return nullcontext()
    from datasync.metrics.server import serve_health

    server = serve_health(address, token=token())
    _say(f"health at {server.url}")
    return server


def _wait_copied(job: PrefixMirror, teller: _Teller) -> None:
    while True:
        try:
            return job.wait_copied(LOOK_EVERY)
        except NotReadyError:
            teller.tell(job.status())


def _pause_by_signals(job: PrefixMirror) -> None:
    def handle(number: int, _: FrameType | None) -> None:
        (job.pause if number == signal.SIGUSR1 else job.resume)()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, handle)


class _Teller:
    """Prints a line when the state changes, and the progress of a long copy each second."""

    def __init__(self) -> None:
        self._told: tuple[object, ...] = ()
        self._progress_at = time.monotonic() + TELL_EVERY

    def tell(self, status: MirrorStatus) -> None:
        state = MirrorState.SYNCED if status.state is MirrorState.LAGGING else status.state
        owed = sum(len(one.owed) for one in status.source.subscriptions.values())
        now = (state, len(status.held), owed)
        if now != self._told:
            self._told = now
            _say(_line(status, state, owed))
        if status.progress is not None and time.monotonic() >= self._progress_at:
            self._progress_at = time.monotonic() + TELL_EVERY
            progress = status.progress
            rate = progress.written / progress.seconds if progress.seconds else 0.0
            left = "" if progress.left is None else f", {progress.left:.0f} s left"
            _say(f"{progress.written} of {progress.differences} keys, {rate:.0f} a second{left}")


def _line(status: MirrorStatus, state: MirrorState, owed: int) -> str:
    text = f"{state.value}: {counted(status.keys, 'key')}, revision {status.revision}"
    if status.in_sync_since is not None:
        text += f", in sync since {datetime.fromtimestamp(status.in_sync_since):%Y-%m-%d %H:%M:%S}"
    if status.extra:
        text += f", {status.extra} only in {status.destination}"
    if status.held:
        text += f", {counted(len(status.held), 'delete')} held: start again with --max-delete if SRC is right"
    if owed:
        text += f", {counted(owed, 'key')} refused"
    error = status.source.last_error or status.last_error
    return f"{text}: {error}" if state is MirrorState.FAILING and error is not None else text


def _open(url: str, *, create: bool = False) -> Store:
    parsed = parse_url(url)
    if parsed.scheme == "memory":
        raise InvalidArgumentError("a memory:// store exists inside one process only: a command always sees it empty")
    if parsed.scheme == "sqlite" and parsed.path and not create and not os.path.exists(parsed.path):
        raise StoreError(f"file {parsed.path} not found: check the path")
    return connect(url)


def _say(text: str) -> None:
    click.echo(f"datasync: {text}", file=sys.stderr)
