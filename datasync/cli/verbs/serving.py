"""``datasync serve``."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from ipaddress import ip_address

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import note
from datasync.cli.targets import TOKEN_VARIABLE, open_store, token
from datasync.errors import InvalidArgumentError, MissingExtraError
from datasync.runtime.threads import SIGNAL_DELAY

#: Seconds to read the store for the first time.
READY_TIMEOUT = 30.0
#: The signals that end it.
ENDING = (signal.SIGTERM, signal.SIGINT)


@click.command()
@positionals("URL")
@click.option("--listen", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT", help="Port 0: a free one.")
@click.option("--prefix", default="", help="Serve the keys that start with it, without it.")
@click.option("--read-only", is_flag=True, help="Refuse every write.")
@click.option("--show-values", is_flag=True, help="Show values on the page.")
@click.option("--allowed-host", "hosts", multiple=True, metavar="NAME", help="A name of this server; repeatable.")
@click.option("--tls-cert", metavar="FILE", help="The certificate, in PEM, for HTTPS.")
@click.option("--tls-key", metavar="FILE", help="Its key.")
@click.option("--no-token", is_flag=True, help="Serve every client on an address that other machines reach.")
def serve(
    url: str,
    listen: str,
    prefix: str,
    read_only: bool,
    show_values: bool,
    hosts: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    no_token: bool,
) -> int:
    """Serve the keys of a store over HTTP, with a status page, until Ctrl-C.

    The API is that of the REST transport: PUT, GET and DELETE of /keys/KEY, /events, /status, /openapi.json. Writes go
    to the store, and so does a transaction. /livez, /readyz and /healthz are probes; with the extra metrics, /metrics
    is for Prometheus. DATASYNC_TOKEN has the token that requests must send.

    \b
    Example: DATASYNC_TOKEN=secret datasync serve etcd://127.0.0.1:2379 --listen 0.0.0.0:8080 --prefix /app/
    """
    from datasync.metrics.systemd import SystemdNotifier
    from datasync.restsync import serve as serve_adapter
    from datasync.restsync.app.store_adapter import StoreAdapter
    from datasync.restsync.serve import split_address

    secret = token()
    if secret is None and not no_token and not _is_loopback(split_address(listen)[0]):
        raise InvalidArgumentError(
            f"--listen {listen} can be reached from other machines: set {TOKEN_VARIABLE}, or give --no-token"
        )
    if (tls_cert is None) != (tls_key is None):
        raise InvalidArgumentError("--tls-cert and --tls-key belong together")
    with suppress(MissingExtraError):  # without the extra, /metrics says so
        from datasync.metrics.prometheus import install

        install()
    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    ended = threading.Event()
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)  # a start is interrupted: the store may be away
    with open_store(url, create=True) as store:
        store.check()
        with (
            StoreAdapter(store, prefix, read_only=read_only) as adapter,
            serve_adapter(
                listen,
                adapter,
                tls=tls,
                token=secret,
                allowed_hosts=hosts or None,
                show_values=show_values,
            ) as server,
        ):
            adapter.wait_ready(READY_TIMEOUT)
            for number in ENDING:
                signal.signal(number, lambda *_: ended.set())
            note(f"serving {adapter.registry.name} at {server.url}, press Ctrl-C to end")
            with SystemdNotifier():
                while not ended.wait(SIGNAL_DELAY):
                    pass
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
