"""An etcd server as the source of cells: killed, frozen, compacted, wiped, restored, and disconnected by a proxy."""

from __future__ import annotations

import random
import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc

from datasync.errors import InvalidArgumentError
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from tests.conftest import absent
from tests.faults.history import TruthCommit
from tests.faults.sources.behind_proxies import BehindProxies
from tests.faults.sources.etcd_writer import SureWriter, read_account
from tests.faults.sources.source import KEYS, Misfortune, Ops, random_ops
from tests.support.executables import etcd_servers
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer, version_of

#: Bytes of the largest request, the default of etcd.
MAX_REQUEST = 3 << 19
#: Operations of the largest transaction: the limit of the contract, and the writer's marker.
MAX_OPS = 128 + 1
#: The server's count of its watchers.
WATCHERS = "etcd_debugging_mvcc_watcher_total"

#: Releases of etcd that lose answered transactions when they are killed (its issue 13766).
FORGETFUL = ("3.5.0", "3.5.1", "3.5.2")

_REFUSED = "the server took what is beyond its limit"


class EtcdFaults(BehindProxies):
    """Faults of one or more etcd servers. The watched store connects through proxies, the writer directly."""

    prefix = "/h/"
    pace = 0.06
    transactions = 80
    #: Bytes that a server sends before its first response.
    _greeting = 0

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        programs = list(etcd_servers().values())
        if not programs:
            absent("etcd")
        # 3.5.0 to 3.5.2, when killed under load, lose transactions that they have acknowledged: there is no truth then.
        sound = [program for program in programs if version_of(program) not in FORGETFUL]
        self._program = chance.choice(sound or programs)
        self._folder = tempfile.TemporaryDirectory(prefix="datasync-faults-")
        self._page_size = chance.choice((20, 10_000))
        self._large = 0

    _servers: Sequence[EtcdServer]
    _writer: SureWriter
    store: EtcdStore

    def _open(self) -> None:
        """The watched store, and the writer's."""
        self._writer = SureWriter(EtcdStore(self._patient()), self.prefix, self.truth)
        self._writer.foreign()  # the first measurement must include its connection
        self.store = EtcdStore(self._hasty())

    def _patient(self) -> EtcdConfig:
        """The settings of the writer, which waits longer than a server is frozen."""
        endpoints = tuple(server.endpoint for server in self._servers)
        return EtcdConfig(endpoints=endpoints, operation_timeout=10.0, dial_timeout=3.0)

    def _hasty(self) -> EtcdConfig:
        return EtcdConfig(
            endpoints=tuple(proxy.address for proxy in self._proxies),
            page_size=self._page_size,
            dial_timeout=0.3,
            operation_timeout=1.0,
            idle_limit=self.idle_limit,
        )

    @property
    def server_watchers(self) -> int | None:
        return int(sum(server.metric(WATCHERS) for server in self._servers))

    def write(self, ops: Ops) -> None:
        with self.lock:
            self._writer.write(ops)

    def misfortunes(self) -> dict[str, Misfortune]:
        """Of the way to the server, and of what the server holds."""
        return {
            **self.on_the_way(),
            "reset-mid-page": self._reset_mid_page,
            "compacted": self._compact_somewhere,
            "compacted-to-head": self._compact,
            "compacted-while-cut": lambda: self.cut_off(self._compact),
            "compacted-between-pages": self._compact_between_pages,
            "compacted-at-resume": self._compact_at_resume,
            "value-at-limit": self._write_large,
            "value-beyond-limit": self._write_too_large,
            "transaction-at-limit": lambda: self.write(self._many(MAX_OPS - 1)),
            "transaction-beyond-limit": self._write_too_many,
            "foreign-write-while-cut": lambda: self.cut_off(self._foreign),
        }

    def heal(self) -> None:
        super().heal()
        self._mend()

    def settle(self) -> None:
        # Connections of the harness do not count as left behind.
        self.store.close()
        self._writer.store.close()
        self._writer.store = EtcdStore(self._patient())
        self._writer.check()

    def history(self) -> Sequence[TruthCommit] | None:
        with self._channel() as channel:
            return read_account(channel, self.prefix, self._writer.foreign(), self._metadata(channel))

    def close(self) -> None:
        self.store.close()
        self._writer.store.close()
        for proxy in self._proxies:
            proxy.close()
        for server in self._servers:
            server.stop()
        self._folder.cleanup()

    @abstractmethod
    def _channel(self) -> grpc.Channel:
        """To a server, without any proxy."""

    def _metadata(self, channel: grpc.Channel) -> Sequence[tuple[str, str]]:
        return ()

    # The data of the server.

    def _foreign(self) -> None:
        with self.lock:
            self._writer.foreign()

    def _compact(self, revision: int | None = None) -> None:
        self._writer.compact(revision)

    def _compact_somewhere(self) -> None:
        """Compact up to a revision that was written before."""
        commits = self.truth.epochs[-1].commits
        if commits:
            self._compact(self.chance.choice(commits).revision)

    def _compact_at_resume(self) -> None:
        """Compact at the revision where the reader resumes, one before it, or one after it."""
        self._each(TcpProxy.refuse)
        place = self._plugin.status().revision + self.chance.choice((-1, 0, 1, 2))
        for _ in range(3):
            self._foreign()
        self._compact(place)
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        self._mend()

    def _list_again(self) -> None:
        """Make the reader list again, in small pages, as soon as it is connected again."""
        self._each(TcpProxy.refuse)
        self.store.config = replace(self.store.config, page_size=max(3, len(self.truth.state) // 15))
        self.write([(key, b"p%d" % self._writer.highest) for key in KEYS])
        for _ in range(2):
            self._foreign()
        self._compact()

    def _reset_mid_page(self) -> None:
        self._list_again()
        self._mend()
        for _ in range(self.chance.randint(1, 3)):
            self._each(lambda proxy: proxy.reset_after(self._greeting + self.chance.randint(300, 4000)))
            self.faults.healed.wait(self.chance.uniform(0.05, 0.3))
        self._mend()

    def _compact_between_pages(self) -> None:
        self._list_again()
        self._mend()
        self._each(lambda proxy: proxy.delay(self.chance.uniform(0.001, 0.02)))
        until = time.monotonic() + self.chance.uniform(0.1, 0.6)
        while time.monotonic() < until and not self.faults.healed.wait(0.01):
            self._foreign()
            self._compact()
        self._mend()

    def _write_large(self) -> None:
        """Put a value of the largest size that a request may have; it is deleted later."""
        self._large += 1
        value = b"large %d " % self._large
        self.write([("a/large", value.ljust(MAX_REQUEST - 600, b"."))])
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        self.write([("a/large", None)])

    def _write_too_large(self) -> None:
        self._refused([("a/large", bytes(MAX_REQUEST))])

    def _write_too_many(self) -> None:
        self._refused(self._many(MAX_OPS))

    def _refused(self, ops: Ops) -> None:
        """Send a request that the server rejects; nothing is lost, and nothing is written."""
        try:
            self.write(ops)
        except InvalidArgumentError:
            return
        raise AssertionError(_REFUSED)

    def _many(self, number: int) -> Ops:
        """Commit a transaction of many keys."""
        self._large += 1
        return [(f"b/many/{n}", b"m%d-%d" % (self._large, n) if self._large % 2 else None) for n in range(number)]

    def _grow(self) -> None:
        """Write until the store is beyond every revision that was ever seen."""
        seen = self._writer.highest
        self.write(random_ops(self.chance))
        while self._writer.revision() <= seen and not self.faults.healed.is_set():
            self._foreign()
        self.write(random_ops(self.chance))


class EtcdSource(EtcdFaults):
    """One server behind one proxy."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._server = self._make_server()
        self._servers = [self._server]
        self._proxies = [self._way_in()]
        self._saved = 0  # the revision of the last copy; 0: none
        self._copies = 0
        self._open()

    def _make_server(self) -> EtcdServer:
        return EtcdServer(self._program, Path(self._folder.name), *self._flags()).start()

    def _way_in(self) -> TcpProxy:
        """What the watched store connects to."""
        return TcpProxy(("127.0.0.1", self._server.port))

    def _flags(self) -> Sequence[str]:
        return ("--max-txn-ops", str(MAX_OPS))

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            **super().misfortunes(),
            "kill9": lambda: self._again(self._server.kill),
            "restart": lambda: self._again(self._server.stop),
            "sigstop": lambda: self._unheard(self._server.freeze, self._server.thaw),
            "kill9-and-compacted-while-cut": lambda: self.cut_off(
                lambda: self._again(self._server.kill), self._compact
            ),
            "copied": self._save,
            "wiped": self._wipe,
            "wiped-and-grown": lambda: self.cut_off(self._wipe, self._grow),
            "restored": self._restore,
            "restored-and-grown": lambda: self.cut_off(self._restore, self._grow),
            "restored-grown-compacted": lambda: self.cut_off(self._restore, self._grow, self._compact_back),
        }

    def heal(self) -> None:
        if self._server.running:
            self._server.thaw()
        else:
            self._server.start()
        super().heal()

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self._server.endpoint, [("grpc.max_receive_message_length", -1)])

    def _again(self, end: Misfortune) -> None:
        end()
        self.faults.healed.wait(self.chance.choice((0, self.chance.uniform(0, 0.5))))
        self._server.start()

    def _compact_back(self) -> None:
        """Compact up to the current revision, or to one that was seen in the previous epoch."""
        self._compact(self.chance.choice((None, max(1, self._writer.revision() - self.chance.randint(0, 6)))))

    def _save(self) -> None:
        """Save a copy to restore later."""
        with self.lock:
            self._saved = self._writer.foreign()
            self._copies += 1
            self._server.stop()
            self._server.save(f"copy-{self._copies}")
            self._server.start()

    def _restore(self) -> None:
        """Restore the last copy; at first, and sometimes later, one that is made just before."""
        if not self._saved or self.chance.random() < 0.3:
            self._save()
            for _ in range(self.chance.randint(0, 3)):  # without another writer there must be something to lose as well
                self.write(random_ops(self.chance))
            self.faults.healed.wait(self.chance.uniform(0, 0.3))
        with self.lock:
            self._server.kill()
            self._server.restore(f"copy-{self._copies}")
            self._server.start()
            self._writer.rewound(self._saved)

    def _wipe(self) -> None:
        with self.lock:
            self._server.kill()
            self._server.wipe()
            self._saved = 0
            self._server.start()
            self._writer.rewound(1)
