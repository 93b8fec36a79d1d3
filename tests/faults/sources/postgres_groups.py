"""PostgreSQL as it is run: a primary with a standby, behind a pooler, on a small disk, and upgraded by a dump."""

from __future__ import annotations

import random
import signal
from dataclasses import replace

from datasync.keyval.postgres import PostgresConfig
from tests.faults.sources.postgres import READER, PostgresFaults, PostgresSource
from tests.faults.sources.postgres_table import PostgresTableSource
from tests.faults.sources.source import Misfortune, random_ops
from tests.support.pgbouncer import Pgbouncer
from tests.support.postgres import PostgresServer, find_postgres

#: Megabytes of the small disk: its server needs about 60.
SMALL = 140


class Pair(PostgresFaults):
    """A primary and a standby; clients name both, and connect to the one that takes writes."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._standby = self._server.standby()

    @property
    def _hosts(self) -> tuple[tuple[str, int | None], ...]:
        return tuple(("127.0.0.1", one.port) for one in (self._server, self._standby))

    @property
    def _hasty(self) -> PostgresConfig:
        return replace(super()._hasty, hosts=self._hosts)

    def misfortunes(self) -> dict[str, Misfortune]:
        common = super().misfortunes()
        names = ("kill9", "stop-fast", "backends-terminated", "rights-taken", "trimmed", "big-transaction")
        return {
            **{name: common[name] for name in names},
            "failover": self._fail_over,
            "failover-with-loss": self._lose,
            "standby-killed": self._kill_standby,
        }

    def close(self) -> None:
        self._standby.close()
        super().close()

    def _fail_over(self) -> None:
        """The primary ends, in order or not, when the standby has everything."""
        with self.lock:
            self._server.wait_in_sync(self._standby)
            self._server.stop() if self.chance.random() < 0.5 else self._server.kill()
            self._exchange()

    def _lose(self) -> None:
        """The standby misses some commits, is promoted without them, and grows past them or not."""
        with self.lock:
            self._server.wait_in_sync(self._standby)
            self._standby.leave()
            kept = self._revision()
        for _ in range(self.chance.randint(1, 5)):
            self.write(random_ops(self.chance))
        self.faults.healed.wait(self.chance.uniform(0, 0.3))  # time to deliver them
        with self.lock:
            self._server.kill()
            self._exchange()
            self.truth.rewind(kept)
        if self.chance.random() < 0.5:
            self._outgrow()

    def _exchange(self) -> None:
        """The standby is the primary, and the dead primary its new standby."""
        self._standby.promote()
        self._server, self._standby = self._standby, self._server
        self._standby.follow(self._server)

    def _kill_standby(self) -> None:
        self._standby.kill()
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        self._standby.start()


class PostgresPairSource(PostgresSource, Pair):
    """A store on a primary and a standby."""


class PostgresTablePairSource(PostgresTableSource, Pair):
    """A table on a primary and a standby."""


class PostgresPooledSource(PostgresSource):
    """A store of which every client, the writer too, connects through pgbouncer in transaction mode."""

    _prepare = False
    _pooler: Pgbouncer

    def _new_server(self) -> PostgresServer:
        server = super()._new_server()
        self._pooler = Pgbouncer(server, users=("postgres", READER))
        return server

    @property
    def _hosts(self) -> tuple[tuple[str, int | None], ...]:
        if not self._pooler.running:
            self._pooler.start()
        return (("127.0.0.1", self._pooler.port),)

    @property
    def _hasty(self) -> PostgresConfig:
        return replace(super()._hasty, hosts=self._hosts)

    @property
    def server_watchers(self) -> int | None:
        return None  # the server's connections are the pooler's

    def misfortunes(self) -> dict[str, Misfortune]:
        common = super().misfortunes()
        names = (
            "kill9", "stop-immediate", "backends-kill9", "backends-terminated", "sigstop", "rights-taken",
            "long-transaction", "trimmed", "restored", "big-transaction", "lock-held", "second-writer",
        )  # fmt: skip
        return {
            **{name: common[name] for name in names},
            "pooler-kill9": lambda: self._restart_pooler(signal.SIGKILL),
            "pooler-restarted": lambda: self._restart_pooler(signal.SIGTERM),
            "pooler-frozen": lambda: self._unheard(self._pooler.freeze, self._pooler.thaw),
        }

    def heal(self) -> None:
        self._pooler.thaw()
        super().heal()

    def close(self) -> None:
        super().close()
        self._pooler.close()

    def _restart_pooler(self, how: signal.Signals) -> None:
        self._pooler.kill() if how is signal.SIGKILL else self._pooler.stop()
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        self._pooler.start()


class SmallDisk(PostgresFaults):
    """A server whose disk is full for a while. It may end by that; then it starts when there is room again."""

    def _new_server(self) -> PostgresServer:
        return PostgresServer(find_postgres(), disk=SMALL, max_wal_size="32MB", min_wal_size="32MB")

    def misfortunes(self) -> dict[str, Misfortune]:
        return {"disk-full": self._fill_disk, "kill9": super().misfortunes()["kill9"]}

    def heal(self) -> None:
        self._server.free_disk()
        super().heal()

    def _fill_disk(self) -> None:
        self._server.fill_disk()
        try:
            self._try(
                lambda: self._server.sql(
                    "CREATE TABLE ballast AS SELECT repeat('x', 999) FROM generate_series(1, 9999)"
                )
            )
            self.faults.healed.wait(self.chance.uniform(0.3, 1.5))
        finally:
            self._server.free_disk()
            self._server.recover()


class PostgresDiskSource(PostgresSource, SmallDisk):
    """A store on a small disk."""

    def misfortunes(self) -> dict[str, Misfortune]:
        return SmallDisk.misfortunes(self)


class PostgresTableDiskSource(PostgresTableSource, SmallDisk):
    """A table on a small disk."""

    def misfortunes(self) -> dict[str, Misfortune]:
        return SmallDisk.misfortunes(self)


class Upgraded(PostgresFaults):
    """A server that is replaced by one of another version, with the data of a dump: 15, 18, 15 is not possible."""

    def _new_server(self) -> PostgresServer:
        find_postgres("18")
        return PostgresServer(find_postgres("15"))

    def misfortunes(self) -> dict[str, Misfortune]:
        common = super().misfortunes()
        return {"upgraded": self._upgrade, **{name: common[name] for name in ("kill9", "backends-terminated")}}

    def _upgrade(self) -> None:
        """From 15 to 18, and later from 18 to 18."""
        with self.lock:
            old, new = self._server, PostgresServer(find_postgres("18")).start()
            old.dump(new)
            old.stop()
            new.stop()
            new.port = old.port
            self._server = new.start()
            old.close()


class PostgresUpgradedSource(PostgresSource, Upgraded):
    """A store that moves to a new server."""

    def misfortunes(self) -> dict[str, Misfortune]:
        return Upgraded.misfortunes(self)


class PostgresTableUpgradedSource(PostgresTableSource, Upgraded):
    """A table that moves to a new server."""

    def misfortunes(self) -> dict[str, Misfortune]:
        return Upgraded.misfortunes(self)
