"""An etcd server with passwords and TLS as the source of cells: tokens expire, permissions and certificates change."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import trustme

from datasync.keyval.etcd import EtcdConfig
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from tests.faults.sources.behind_proxies import IDLE_LIMIT
from tests.faults.sources.etcd import EtcdSource
from tests.faults.sources.source import Misfortune
from tests.support.servers import EtcdServer, etcdctl

#: The reading user, and the writing user.
READER, PASSWORD, ROOT = "agent", "agents-password", "root"
#: Seconds that the command line client waits for a response.
PATIENCE = "15s"
#: Lifetime of an unused token in seconds.
TOKEN = 1


class EtcdSecureSource(EtcdSource):
    """The user of the watched store may only read the prefix. A copy contains the same users."""

    _greeting = 3000  # the handshake, with two certificates, and the response to the password

    def __init__(self, chance: random.Random) -> None:
        self._authority = trustme.CA()
        super().__init__(chance)

    def _make_server(self) -> EtcdServer:
        folder = Path(self._folder.name)
        self._ca = folder / "authority.pem"
        self._certificate = (folder / "server.pem", folder / "server.key")
        self._authority.cert_pem.write_to_path(str(self._ca))
        self._issue()
        # The cheapest hash that etcd accepts: otherwise a cell on a busy machine waits mostly for passwords.
        flags = (*self._flags(), "--auth-token-ttl", str(TOKEN), "--bcrypt-cost", "4")
        server = EtcdServer(self._program, folder / "etcd", *flags, certificates=self._certificate).start()
        self._server = server
        self._allow()
        return server

    def misfortunes(self) -> dict[str, Misfortune]:
        known = super().misfortunes()
        kept = ("reset", "reset-mid-message", "reset-mid-page", "cut", "black-hole", "rate", "compacted-while-cut")
        return {
            **{name: known[name] for name in (*kept, "kill9", "sigstop", "restored", "restored-and-grown")},
            "token-expired": lambda: self.faults.healed.wait(TOKEN + self.chance.uniform(0.5, 1.0)),
            "token-expired-while-cut": lambda: self.cut_off(lambda: self.faults.healed.wait(TOKEN + 0.5)),
            "permission-revoked": self._revoke,
            "permission-revoked-while-cut": lambda: self.cut_off(self._revoke),
            "users-changed": self._change_users,
            "certificate-rotated": self._rotate,
            "certificate-rotated-while-up": self._issue,
        }

    def heal(self) -> None:
        super().heal()
        self._grant()

    def _patient(self) -> EtcdConfig:
        return replace(super()._patient(), username=ROOT, password=ROOT, ca_file=str(self._ca))

    def _hasty(self) -> EtcdConfig:
        return replace(super()._hasty(), username=READER, password=PASSWORD, ca_file=str(self._ca))

    def _channel(self) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self._ca.read_bytes())
        return grpc.secure_channel(self._server.endpoint, credentials, [("grpc.max_receive_message_length", -1)])

    def _metadata(self, channel: grpc.Channel) -> Sequence[tuple[str, str]]:
        authenticate = channel.unary_unary(
            "/etcdserverpb.Auth/Authenticate",
            pb.AuthenticateRequest.SerializeToString,
            pb.AuthenticateResponse.FromString,
        )
        answer = authenticate(pb.AuthenticateRequest(name=ROOT, password=ROOT), timeout=10)
        return (("token", answer.token),)

    def _ctl(self, *command: str, check: bool = True) -> None:
        said = ("--cacert", str(self._ca), "--user", f"{ROOT}:{ROOT}", "--command-timeout", PATIENCE, *command)
        etcdctl(f"https://{self._server.endpoint}", *said, check=check)

    def _issue(self) -> None:
        """Write a new certificate of the same authority; the server reads it at the next handshake."""
        leaf = self._authority.issue_cert("127.0.0.1", "localhost")
        chain, key = self._certificate
        # Not in place: the server may be reading it.
        for path, pems in ((chain, leaf.cert_chain_pems), (key, [leaf.private_key_pem])):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(b"".join(pem.bytes() for pem in pems))
            fresh.replace(path)

    def _allow(self) -> None:
        for command in (
            ("user", "add", f"{ROOT}:{ROOT}"),
            ("role", "add", ROOT),
            ("user", "grant-role", ROOT, ROOT),
            ("user", "add", f"{READER}:{PASSWORD}"),
            ("role", "add", READER),
            ("role", "grant-permission", READER, "read", self.prefix, "--prefix"),
            ("user", "grant-role", READER, READER),
            ("auth", "enable"),
        ):
            etcdctl(f"https://{self._server.endpoint}", "--cacert", str(self._ca), *command, check="add" not in command)

    def _grant(self) -> None:
        self._ctl("role", "grant-permission", READER, "read", self.prefix, "--prefix")

    def _revoke(self) -> None:
        """Revoke the permission for a long or short time, and grant it again."""
        self._ctl("role", "revoke-permission", READER, self.prefix, "--prefix", check=False)
        self.faults.healed.wait(self.chance.uniform(0, 2 * IDLE_LIMIT))
        self._grant()

    def _change_users(self) -> None:
        """Change the users, which invalidates every token."""
        name = f"other-{self.chance.randrange(1 << 30)}"
        self._ctl("user", "add", f"{name}:{name}", check=False)
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        self._ctl("user", "delete", name, check=False)

    def _rotate(self) -> None:
        """Restart the server with another certificate of the same authority."""
        self._server.kill()
        self._issue()
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        self._server.start()
