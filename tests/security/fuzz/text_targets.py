"""URLs, configuration files, and the command."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

from datasync.cli import targets
from datasync.cli.main import main
from datasync.errors import StoreError
from datasync.keyval.api import Store
from datasync.keyval.etcd.config import EtcdConfig, read_options
from datasync.keyval.etcd.endpoint import _make_channel
from datasync.keyval.etcd.store import EtcdStore
from datasync.keyval.urls import _known_options, _load, _merge, connect, parse_url
from datasync.restsync.client.connection import read_url
from datasync.restsync.serve import split_address
from tests.security.fuzz.supply import Supply
from tests.security.fuzz.target import SECRET, Finding, Target, only, refuse_secrets

URLS = (
    f"etcd://me:{SECRET}@127.0.0.1:2379,[::1]:2380?dial_timeout=1.5&ca_file=/nowhere/ca.pem&tls=true",
    f"etcd://me:{SECRET}@h?session_ttl=5&page_size=100&auto_compact=1h&insecure_transport=1",
    f"etcd://h1:1,h2:65535?username=me&password={SECRET}",
    f"redis://:{SECRET}@localhost:6379/0",
    f"redis+sentinel://me:{SECRET}@h:26379/mymaster",
    "sqlite:///var/lib/agent.db?poll_interval=0.1&synchronous=normal",
    "sqlite:relative%20path.db",
    "memory://name",
    f"consul://h:8500?token={SECRET}",
)
SERVERS = (
    f"http://me:{SECRET}@127.0.0.1:8080/base",
    "https://[::1]:443/",
    "http://host",
    "https://user@h:80",
    f"https://me:{SECRET}@h:99999",
    f"http://me:{SECRET}@[::1/",
)
ADDRESSES = ("127.0.0.1:80", "[::1]:0", "host:65535", "localhost:9", ":80")


class Urls(Target):
    """Every URL and address that people write."""

    name = "urls"
    about = "store URLs with their options, URLs of REST servers, addresses to listen on"

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        with only():
            kind = supply.number(4)
            if kind == 0:
                self._store(supply.text(URLS))
            elif kind == 1:
                self._etcd(supply.text(URLS[:3]))
            elif kind == 2:
                refuse_secrets(repr(read_url(supply.text(SERVERS))))
            else:
                split_address(supply.text(ADDRESSES))

    def _store(self, url: str) -> None:
        parsed = parse_url(url)
        refuse_secrets(repr(parsed))
        _merge(parsed, {}, _known_options(_load(parsed.scheme)))

    def _etcd(self, url: str) -> None:
        parsed = parse_url(url)
        if SECRET in repr(parsed.hosts):
            return  # where nobody could tell it from a name
        if parsed.scheme == "etcd" and not _files(parsed.query.get("config_file")):
            with connect(url) as store:
                _use(store)


CONFIGS = (
    f"endpoints:\n- 127.0.0.1:2379\n- https://h:1\nusername: me\npassword: {SECRET}\ndial-timeout: 1s\n".encode(),
    f'{{"endpoints": ["h:1"], "password": "{SECRET}", "username": "u", "session-ttl": 5}}'.encode(),
    b"operation-timeout: 3000000000\nreconnect-interval: 500ms\nauto-compact: 1h30m\nidle-limit: 2.5\n",
    b"insecure-transport: true\ninsecure-skip-tls-verify: false\nallow-delayed-start: yes\npage-size: 0x10\n",
    f"endpoints: user:{SECRET}@host:2379\n".encode(),
    f"password: &a [{SECRET}]\nusername: *a\n".encode(),
    b"when: 2024-02-30 10:00:00 +99:99\n? [a, b]\n: c\n",
    b"a: 1:60:60\nb: .inf\nc: 0b1_0\nd: !!binary aGk=\ne: !!set {x}\nf: <<\n",
    b"ca-file: /nowhere/ca.pem\ncert-file: /nowhere/c\nkey-file: /nowhere/k\n",
)


class ConfigFiles(Target):
    """The configuration file of etcd, up to a channel made with it."""

    name = "config"
    about = "etcd's configuration files, YAML and JSON"

    def open(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._file = self._folder / "etcd.conf"

    def close(self) -> None:
        shutil.rmtree(self._folder)

    def run(self, data: bytes) -> None:
        self._file.write_bytes(Supply(data).mutated(CONFIGS))
        with only():
            config = read_options({"config-file": str(self._file)}, environ={})
            if SECRET in config.username:
                return  # two lines became one: where nobody could tell it from a name
            refuse_secrets(repr(config))
            with EtcdStore(config) as store:
                _use(store)


def _use(store: Store) -> None:
    assert isinstance(store, EtcdStore)
    refuse_secrets(f"{store!r} {store.name}")
    config = store.config
    if not _files(config.ca_file, config.cert_file, config.key_file):
        for address in config.addresses:
            _make_channel(address, config).close()


def _files(*paths: str | None) -> bool:
    """True when a path may lead to something that is not a small file: devices are not what is tested here."""
    return any(path and not path.startswith("/nowhere") for path in paths)


COMMANDS = (
    ("put", "sqlite://{folder}/a.db", "k/1", SECRET),
    ("get", "sqlite://{folder}/a.db", "k/1"),
    ("list", "sqlite://{folder}/a.db", "k/"),
    ("list", "--keys", "sqlite://{folder}/a.db"),
    ("delete", "--prefix", "sqlite://{folder}/a.db", "k/"),
    ("put", "sqlite://{folder}/a.db", "k", "-"),
    ("put", "-f", "-", "--if-revision", "1", "sqlite://{folder}/a.db", "k"),
    ("get", "-o", "json", "--prefix", "sqlite://{folder}/a.db", "k/"),
    ("txn", "-f", "-", "sqlite://{folder}/a.db"),
    ("history", "sqlite://{folder}/a.db", "k/1"),
    ("get", f"etcd://me:{SECRET}@h:99999", "k"),
    ("version",),
    ("--help",),
    ("--version",),
)
#: Those that go on for ever, start programs, or write files.
NEVER_RUN = {"watch", "demo", "serve", "exec", "lock", "mirror", "edit", "export", "import"}


class CommandLine(Target):
    """The command, in this process: an exit code and at most a line, never a traceback."""

    name = "cli"
    about = "arguments of the command"
    examples = 60

    def open(self) -> None:
        self._folder = tempfile.mkdtemp()
        # A mutated URL must not write wherever it likes.
        self._fence = mock.patch.object(targets, "connect", self._connect)
        self._fence.start()

    def close(self) -> None:
        self._fence.stop()
        shutil.rmtree(self._folder)

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        arguments = [
            supply.text([word.format(folder=self._folder)], edits=3)
            if supply.chance(2)
            else word.format(folder=self._folder)
            for word in supply.one_of(COMMANDS)
        ]
        if supply.chance(4):
            arguments.insert(supply.number(len(arguments) + 1), supply.text(["--keys", "--", "-x", "watch me"]))
        if arguments[0] in NEVER_RUN or any("\0" in one for one in arguments):  # no system passes that on
            return
        told = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")
        stdin = io.TextIOWrapper(io.BytesIO(supply.rest()))
        with mock.patch.multiple(sys, stdout=out, stderr=told, stdin=stdin):
            code = main(arguments)
        told.flush()
        line = told.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined]
        if code not in (0, 1, 2) or "Traceback" in line:
            raise Finding(f"exit code {code}: {line[-400:]!r}")
        # The command is named by its first argument, and says which argument it does not know.
        if code != 2:
            refuse_secrets(line)

    def _connect(self, url: str, **options: object) -> Store:
        parsed = parse_url(url)
        if parsed.scheme != "sqlite" or not os.path.abspath(parsed.path).startswith(self._folder):
            raise StoreError("outside of the fence")
        return connect(url, **options)


__all__ = ["CommandLine", "ConfigFiles", "EtcdConfig", "Urls"]
