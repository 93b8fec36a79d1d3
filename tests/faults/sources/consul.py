"""A Consul server as the source of cells: killed, frozen, wiped, restored, with tokens that lose their rights."""

from __future__ import annotations

import base64
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from datasync.errors import InvalidArgumentError, StoreError
from datasync.keyval.consul import ConsulConfig, ConsulStore
from datasync.keyval.types import PutOp
from tests.faults.history import Op1, brief
from tests.faults.sources.behind_proxies import BehindProxies
from tests.faults.sources.etcd_writer import SureWriter
from tests.faults.sources.source import Misfortune, Ops, random_ops
from tests.support.consul_server import MASTER, ConsulServer
from tests.support.nginx import Nginx
from tests.support.proxy import TcpProxy
from tests.support.timing import slowdown

#: Seconds of a blocking query of the watched store.
WAIT = 1.0
#: Keys and bytes of one transaction: a delete counts twice of 64, and values grow by a third.
MOST_KEYS, MOST_BYTES = 28, 300_000
#: Bytes of a value that just fits into a transaction, and of one that does not.
LARGE, TOO_LARGE = 390_000, 512 * 1024 + 1
#: Operations that are too many for a transaction.
TOO_MANY = 65
#: The rights of the watched store, all of them and fewer, and the name of their policy.
ALL_RIGHTS = 'key_prefix "h/" { policy = "read" }'
FEWER_RIGHTS = 'key_prefix "h/" { policy = "read" } key_prefix "h/a/" { policy = "deny" }'
NO_RIGHTS = 'key_prefix "elsewhere/" { policy = "read" }'
POLICY = "watcher"
#: Client-lifetime keys of another client, outside the watched prefix, and seconds until they are back.
OWNED, MANY, BACK = "owned/", 100, 10.0

_PROXY = """
server {{
    listen 127.0.0.1:{{port}};
    location /consul/ {{
        proxy_pass http://127.0.0.1:{port}/;
        proxy_buffering on;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_next_upstream off;
    }}
}}
"""


class ConsulWriter(SureWriter):
    """As that of etcd, over a store of Consul."""

    def revision(self) -> int:
        found = self._patiently(lambda: self.store.scan("", keys_only=True))
        return found.revision


class ConsulSource(BehindProxies):
    """One server behind one proxy. The token of the watched store may only read the prefix."""

    prefix = "/h/"
    pace = 0.06
    convergence = 5.0
    transactions = 60
    idle_limit = ConsulConfig(wait=WAIT).idle_limit
    #: The path of the agent behind a gateway.
    path = ""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.truth.net_effects = True
        self._folder = tempfile.TemporaryDirectory(prefix="datasync-faults-")
        self._server = ConsulServer(Path(self._folder.name) / "consul", tokens=True).start()
        self._token = self._server.allow(POLICY, ALL_RIGHTS)
        self._proxies = [TcpProxy(("127.0.0.1", self.in_front()))]
        self._writer = ConsulWriter(self._patient(), self.prefix, self.truth)  # type: ignore[arg-type]
        self._writer.foreign()
        self._saved, self._copies = 0, 0
        self._large = self._others = 0
        self.store = ConsulStore(
            ConsulConfig(
                address=f"{self._proxies[0].address}{self.path}",
                token=self._token,
                dial_timeout=0.3,
                operation_timeout=1.0,
                wait=WAIT,
            )
        )

    def in_front(self) -> int:
        """The port that the proxy forwards to."""
        return self._server.port

    def write(self, ops: Ops) -> None:
        for piece in _pieces(ops):
            with self.lock:
                self._writer.write(piece)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            **self.on_the_way(),
            "kill9": lambda: self._again(self._server.kill),
            "restart": lambda: self._again(self._server.stop),
            "sigstop": lambda: self._unheard(self._server.freeze, self._server.thaw),
            "copied": self._save,
            "wiped": self._wipe,
            "wiped-and-grown": lambda: self.cut_off(self._wipe, self._grow),
            "restored": self._restore,
            "restored-and-grown": lambda: self.cut_off(self._restore, self._grow),
            "rights-revoked": lambda: self._revoke(NO_RIGHTS),
            "rights-reduced": lambda: self._revoke(FEWER_RIGHTS),
            "rights-revoked-while-cut": lambda: self.cut_off(lambda: self._revoke(NO_RIGHTS)),
            "token-deleted": self._delete_token,
            "session-lost": self._lose_session,
            "foreign-put": self._foreign_put,
            "foreign-put-while-cut": lambda: self.cut_off(self._foreign_put),
            "foreign-write-while-cut": lambda: self.cut_off(self._foreign),
            "value-at-limit": self._write_large,
            "value-beyond-limit": lambda: self._refused([("a/large", bytes(TOO_LARGE))]),
            "transaction-beyond-limit": lambda: self._refused([(f"b/many/{n}", b"") for n in range(TOO_MANY)]),
        }

    def heal(self) -> None:
        super().heal()
        if self._server.running:
            self._server.thaw()
        else:
            self._server.start()
        self._grant()
        self._mend()

    def settle(self) -> None:
        """Compare the record with what the server exports by its own command."""
        # Connections of the harness do not count as left behind.
        self.store.close()
        self._writer.store.close()
        self._writer.store = self._patient()  # type: ignore[assignment]
        self._writer.check()
        exported = json.loads(self._server.ctl("kv", "export", self.prefix[1:]))
        there = {one["key"][len(self.prefix) - 1 :]: brief(base64.b64decode(one["value"])) for one in exported}
        assert there == dict(self.truth.state), "the record of the writer is not what the server exports"

    def close(self) -> None:
        self.store.close()
        self._writer.store.close()
        for proxy in self._proxies:
            proxy.close()
        self._server.stop()
        self._folder.cleanup()

    # The server and its data.

    def _patient(self) -> ConsulStore:
        """A store for the harness, which waits longer than the server is frozen."""
        return ConsulStore(
            ConsulConfig(address=self._server.endpoint, token=MASTER, operation_timeout=10.0, session_ttl=2.0)
        )

    def _again(self, end: Misfortune) -> None:
        end()
        self.faults.healed.wait(self.chance.choice((0, self.chance.uniform(0, 0.5))))
        self._server.start()

    def _save(self) -> None:
        """Save a copy to restore later."""
        with self.lock:
            self._saved = self._writer.foreign()
            self._copies += 1
            self._server.stop()
            self._server.save(f"copy-{self._copies}")
            self._server.start()

    def _restore(self) -> None:
        """Restore a copy that lacks the last writes."""
        self._save()
        for _ in range(self.chance.randint(1, 3)):
            self.write(random_ops(self.chance))
        with self.lock:
            self._server.kill()
            self._server.restore(f"copy-{self._copies}")
            self._server.start()
            self._writer.rewound(self._saved)

    def _wipe(self) -> None:
        """Remove everything: the index begins anew, and the tokens have to be made again."""
        with self.lock:
            self._server.kill()
            self._server.wipe()
            self._server.start()
            self._make_token()
            self._writer.rewound(0)

    def _grow(self) -> None:
        """Write until the store is beyond every revision that was ever seen."""
        seen = self._writer.highest
        self.write(random_ops(self.chance))
        while self._writer.revision() <= seen and not self.faults.healed.is_set():
            self._foreign()
        self.write(random_ops(self.chance))

    def _foreign(self) -> None:
        with self.lock:
            self._writer.foreign()

    def _foreign_put(self) -> None:
        """Write by Consul's own command, which knows nothing of the marker."""
        key = self.chance.choice(("a/1", "b/k1", "c/x/other"))
        self._others += 1
        value = f"others {self._others}"
        with self.lock:
            self._server.ctl("kv", "put", f"{self.prefix[1:]}{key}", value)
            (found,) = self._asked(f"/v1/kv{self.prefix}{key}")
            self.truth.record(found["ModifyIndex"], [Op1(key, value.encode())])
            self._writer.highest = max(self._writer.highest, found["ModifyIndex"])
            self._writer.put_by_others(key, value.encode())

    def _write_large(self) -> None:
        """Put a value of the largest size that a transaction may have; it is deleted later."""
        self._large += 1
        self.write([("a/large", (b"large %d " % self._large).ljust(LARGE, b"."))])
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        self.write([("a/large", None)])

    def _refused(self, ops: Ops) -> None:
        """Send what the store refuses; nothing is lost, and nothing is written."""
        with self.lock:
            try:
                self._writer.write(ops)
            except InvalidArgumentError:
                return
        raise AssertionError("the store took what is beyond its limit")

    # Tokens.

    def _make_token(self) -> None:
        self._server.ask("PUT", "/v1/acl/policy", {"Name": POLICY, "Rules": ALL_RIGHTS})
        self._server.ask("PUT", "/v1/acl/token", {"SecretID": self._token, "Policies": [{"Name": POLICY}]})

    def _grant(self) -> None:
        try:
            self._server.change_policy(POLICY, ALL_RIGHTS)
        except (OSError, HTTPException, TypeError):
            pass  # the server was just killed, or knows no policy yet

    def _revoke(self, rules: str) -> None:
        """Take rights away for a long or short time, and give them back."""
        with self.lock:
            self._server.change_policy(POLICY, rules)
        self.faults.healed.wait(self.chance.uniform(0, 2 * self.idle_limit))
        with self.lock:
            self._grant()

    def _delete_token(self) -> None:
        with self.lock:
            known = self._asked("/v1/acl/tokens")
            policy = self._asked(f"/v1/acl/policy/name/{POLICY}")["ID"]
            (mine,) = (one for one in known if any(link["ID"] == policy for link in one.get("Policies") or ()))
            self._server.ask("DELETE", f"/v1/acl/token/{mine['AccessorID']}")
        self.faults.healed.wait(self.chance.uniform(0, 1.0))
        with self.lock:
            self._make_token()

    def _asked(self, path: str) -> Any:
        answer = self._server.ask("GET", path)
        assert answer is not None, f"the server does not answer {path}"
        return answer

    # Client-lifetime keys of another client.

    def _lose_session(self) -> None:
        """Destroy the session of another client: its keys come back, each once, and go when it closes."""
        self._others += 1
        prefix = f"{OWNED}{self._others}/"
        owner = self._patient()
        try:
            for start in range(0, MANY, MOST_KEYS):
                keys = range(start, min(MANY, start + MOST_KEYS))
                owner.commit([PutOp(f"{prefix}{n}", b"%d" % n, client_lifetime=True) for n in keys])
            (session,) = {one["Session"] for one in self._held(prefix)}
            self._server.ask("PUT", f"/v1/session/destroy/{session}")
            self._soon(lambda: not any(one.get("Session") == session for one in self._held(prefix)), "the old are gone")
            self._soon(lambda: len(self._held(prefix)) == MANY, "all keys are back")
            assert len({one["Session"] for one in self._held(prefix)}) == 1
        except StoreError:  # the server was restarted for another reason
            pass
        finally:
            owner.close()
        self._soon(lambda: not self._held(prefix), "no key is left")

    def _held(self, prefix: str) -> list[dict[str, Any]]:
        return self._server.ask("GET", f"/v1/kv/{prefix}?recurse") or []

    def _soon(self, condition: Callable[[], bool], what: str) -> None:
        left = 10 * BACK * min(slowdown(), 2.0)
        while not condition():
            left -= 1
            assert left > 0, f"not within {BACK:g} s: {what}"
            self.faults.healed.wait(0.1)
            if self.faults.healed.is_set():
                return


class ConsulNginxSource(ConsulSource):
    """The same behind nginx and a path, for the watched store."""

    path = "/consul"

    def in_front(self) -> int:
        self._nginx = Nginx(Path(self._folder.name) / "nginx", _PROXY.format(port=self._server.port)).start()
        return self._nginx.port

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            **super().misfortunes(),
            "nginx-kill9": lambda: self._renew(self._nginx.kill),
            "nginx-restart": lambda: self._renew(self._nginx.stop),
        }

    def heal(self) -> None:
        super().heal()
        if not self._nginx.running:
            self._nginx.start()

    def close(self) -> None:
        super().close()
        self._nginx.stop()

    def _renew(self, end: Callable[[], object]) -> None:
        end()
        self.faults.healed.wait(self.chance.choice((0, self.chance.uniform(0, 0.5))))
        self._nginx.start()


def _pieces(ops: Ops) -> Iterator[Sequence[tuple[str, bytes | None]]]:
    """*ops* in transactions of a size that Consul takes."""
    piece: list[tuple[str, bytes | None]] = []
    size = 0
    for key, value in ops:
        more = len(key) + len(value or b"")
        if piece and (len(piece) == MOST_KEYS or size + more > MOST_BYTES):
            yield piece
            piece, size = [], 0
        piece.append((key, value))
        size += more
    yield piece
