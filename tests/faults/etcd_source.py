"""A real etcd as the source of histories: killed, restored, compacted, and cut off by a proxy.

Its only writer goes to it directly and knows what was written: each transaction also sets a marker, which tells
afterwards whether one that got no answer was applied.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from datasync.errors import CompactedError, StoreError
from datasync.keyval.api import CommitResult, KeyValue, PutOp
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from tests.conftest import absent
from tests.faults.history import Op1
from tests.faults.scripted import as_op
from tests.faults.sources import Misfortune, Ops, Source
from tests.programs import etcd_servers
from tests.proxy import TcpProxy
from tests.servers import EtcdServer

#: Not under the watched prefix.
MARKER = "marker"
#: Seconds in which a server that was started again must answer its writer.
BACK = 20.0


class EtcdSource(Source):
    """One server and one proxy for one history. The watched store goes through the proxy, the writer does not."""

    prefix = "/h/"
    pace = 0.06
    transactions = 80

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        programs = list(etcd_servers().values())
        if not programs:
            absent("etcd")
        self._folder = tempfile.TemporaryDirectory(prefix="datasync-faults-")
        self._server = EtcdServer(chance.choice(programs), Path(self._folder.name)).start()
        self._proxy = TcpProxy(("127.0.0.1", self._server.port))
        self._writer = EtcdStore(EtcdConfig(endpoints=(self._server.endpoint,)))
        hasty = EtcdConfig(
            endpoints=(self._proxy.address,),
            page_size=chance.choice((3, 10_000)),
            dial_timeout=0.3,
            operation_timeout=1.0,
            idle_limit=1.0,
        )
        self.store = EtcdStore(hasty)
        self._sent = 0
        self._saved = 0  # the revision that the last copy was made at; 0: there is none
        self._copies = 0

    def write(self, ops: Ops) -> None:
        with self.lock:
            self._sent += 1
            marker = PutOp(MARKER, b"%d" % self._sent)
            there = set(self.truth.state)
            done: CommitResult | None
            try:
                done = self._writer.commit([marker, *(as_op(self.prefix + key, value) for key, value in ops)])
            except StoreError:
                done = self._find_out(marker.value)
            effect = [Op1(key, value) for key, value in ops if value is not None or key in there]
            if done is not None and effect:
                self.truth.record(done.revision, effect)

    def misfortunes(self) -> dict[str, Misfortune]:
        chance = self.chance
        return {
            "reset": self._proxy.reset,
            "dropped": self._proxy.drop,
            "reset mid-message": lambda: self._proxy.reset_after(chance.randint(1, 3000)),
            "delayed": lambda: self._proxy.delay(chance.uniform(0, 0.02)),
            "cut": self._cut_off,
            "compacted while cut off": lambda: self._cut_off(self.compact),
            "compacted": self.compact,
            "compacted somewhere": self.compact_somewhere,
            "black hole": self._black_hole,
            "frozen": self._freeze,
            "killed": self._kill,
            "killed and compacted while cut off": lambda: self._cut_off(self._kill, self.compact),
            "copied": self._save,
            "restored": self._restore,
            "wiped": self._wipe,
        }

    def heal(self) -> None:
        super().heal()
        self._proxy.heal()

    def compact(self) -> None:
        self._compact(None)

    def compact_somewhere(self) -> None:
        """Compact up to a revision that was written before."""
        commits = self.truth.epochs[-1].commits
        if commits:
            self._compact(self.chance.choice(commits).revision)

    def settle(self) -> None:
        """What was recorded is what is there."""
        self._patiently(MARKER)  # it may have been killed a moment ago
        there = {pair.key[len(self.prefix) :]: pair.value for pair in self._writer.scan(self.prefix)}
        assert there == dict(self.truth.state), "the record of the writer is not what the server holds"

    def close(self) -> None:
        self.store.close()
        self._writer.close()
        self._proxy.close()
        self._server.stop()
        self._folder.cleanup()

    def _find_out(self, marker: bytes) -> CommitResult | None:
        """What became of a transaction that got no answer; None when nothing."""
        found = self._patiently(MARKER)
        if found is None or found.value != marker:
            return None
        return CommitResult(True, found.revision, 0)

    def _patiently(self, key: str) -> KeyValue | None:
        deadline = time.monotonic() + BACK
        while True:
            try:
                return self._writer.read(key)
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _compact(self, revision: int | None) -> None:
        try:
            self._writer.compact(revision)
        except (CompactedError, StoreError):
            pass  # that far already, or the server is away

    def _cut_off(self, *meanwhile: Misfortune) -> None:
        self._proxy.refuse()
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        self._proxy.heal()

    def _black_hole(self) -> None:
        up, down = self.chance.choice(((True, True), (True, False), (False, True)))
        self._proxy.black_hole(up=up, down=down)
        self.faults.healed.wait(self.chance.choice((0.05, 1.3)))
        self._proxy.heal()

    def _freeze(self) -> None:
        self._server.freeze()
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        self._server.thaw()

    def _kill(self) -> None:
        self._server.kill()
        self._server.start()

    def _save(self) -> None:
        """Keep a copy to go back to."""
        with self.lock:
            self._patiently(MARKER)
            self._saved = self._writer.revision()
            self._copies += 1
            self._server.stop()
            self._server.save(f"copy-{self._copies}")
            self._server.start()

    def _restore(self) -> None:
        if self._saved:
            with self.lock:
                self._server.kill()
                self._server.restore(f"copy-{self._copies}")
                self.truth.rewind(self._saved)
                self._server.start()

    def _wipe(self) -> None:
        with self.lock:
            self._server.kill()
            self._server.wipe()
            self._saved = 0
            self.truth.rewind(1)
            self._server.start()
