"""Etcd with something in between that is not ours: its own proxy, a TCP balancer, nginx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.sources.behind_proxies import IDLE_LIMIT
from tests.faults.sources.etcd import EtcdSource
from tests.faults.sources.etcd_cluster import EtcdClusterSource
from tests.faults.sources.source import Misfortune
from tests.support.balancer import Balancer
from tests.support.etcd_proxy import EtcdGrpcProxy
from tests.support.nginx import Nginx
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer

#: One address for three members. The stream of a watch lasts as long as its client sends probes.
_NGINX = """
    upstream members {{ {members} }}
    server {{
        listen 127.0.0.1:{{port}} http2;
        location / {{ grpc_pass grpc://members; grpc_connect_timeout 1s; }}
    }}
"""


class EtcdProxySource(EtcdSource):
    """One server behind ``etcd grpc-proxy``, which goes on while the server under it is killed, wiped or restored."""

    #: The proxy asks for the previous values of all events, and all its watches share one stream: the response to the
    #: creation of a watch waits for the backlogs of those before it.
    idle_limit = 4.0
    #: A watch that the proxy takes while it reconnects may be answered by nobody, which only the idle limit ends.
    convergence = idle_limit + 2.0

    def _make_server(self) -> EtcdServer:
        server = super()._make_server()
        self._between = EtcdGrpcProxy(self._program, [server.endpoint], Path(self._folder.name) / "proxy").start()
        return server

    def _way_in(self) -> TcpProxy:
        return TcpProxy(("127.0.0.1", self._between.port))

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            **super().misfortunes(),
            "proxy-kill9": lambda: self._renew(self._between.kill),
            "proxy-restart": lambda: self._renew(self._between.stop),
            "proxy-sigstop": lambda: self._unheard(self._between.freeze, self._between.thaw),
        }

    def heal(self) -> None:
        super().heal()
        if self._between.running:
            self._between.thaw()
        else:
            self._between.start()

    def close(self) -> None:
        self._between.stop()
        super().close()

    def _renew(self, end: Misfortune) -> None:
        end()
        self.faults.healed.wait(self.chance.choice((0, self.chance.uniform(0, 0.5))))
        self._between.start()


class EtcdBalancedSource(EtcdClusterSource):
    """Three members behind one address that leads each connection to another one."""

    def _ways_in(self) -> Sequence[TcpProxy]:
        self._balancer = Balancer([("127.0.0.1", server.port) for server in self._servers])
        return [self._balancer]

    def _connected(self) -> EtcdServer:
        return self._servers[self._balancer.last]

    def _part_with_connected(self) -> None:
        """Let the balancer go on to the others, as one does that found a member unhealthy."""
        self._balancer.only(self._servers.index(self.chance.choice(self._others(self._connected()))))
        self.faults.healed.wait(self.chance.uniform(0.1, 2.5 * IDLE_LIMIT))
        self._balancer.heal()

    def _reach_only(self, member: EtcdServer) -> None:
        self._balancer.only(self._servers.index(member))


class EtcdNginxSource(EtcdClusterSource):
    """Three members behind nginx, which leads each call to another one."""

    def _ways_in(self) -> Sequence[TcpProxy]:
        members = " ".join(f"server {server.endpoint} max_fails=1 fail_timeout=1s;" for server in self._servers)
        self._nginx = Nginx(Path(self._folder.name) / "nginx", _NGINX.format(members=members)).start()
        return [TcpProxy(("127.0.0.1", self._nginx.port))]

    def misfortunes(self) -> dict[str, Misfortune]:
        known = super().misfortunes()
        for name in ("connected-cut", "lagging-member"):  # no single member can be made the only one
            del known[name]
        return {
            **known,
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

    def _connected(self) -> EtcdServer:
        return self.chance.choice(list(self._servers))

    def _renew(self, end: Callable[[], object]) -> None:
        end()
        self.faults.healed.wait(self.chance.choice((0, self.chance.uniform(0, 0.5))))
        self._nginx.start()
