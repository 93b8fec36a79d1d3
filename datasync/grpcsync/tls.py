"""TLS settings of servers and clients, and advice on failed handshakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from datasync.errors import InvalidArgumentError
from datasync.runtime.files import read_file
from datasync.runtime.logs import LimitedLog, get_logger

log = get_logger(__name__)

#: Texts of gRPC for a connection that the other side closed without a reason.
_CLOSED = ("Socket closed", "Connection reset", "recvmsg", "End of TCP stream")
_OTHER_NAME = "the server's certificate is for another name: set server_name, or use a certificate for this name"
#: Parts of gRPC's error texts, and the advice for each. The first match counts; the texts differ between versions.
_ADVICE = (
    ("expired", "the server's certificate has expired: renew it, or check this machine's clock"),
    ("not yet valid", "the server's certificate is not valid yet: check the clocks of both machines"),
    ("ostname", _OTHER_NAME),
    ("not in peer certificate", _OTHER_NAME),
    ("issuer", "set ca to the authority that signed the server's certificate"),
    ("CERTIFICATE_VERIFY_FAILED", "check that ca has the server's authority, and that no certificate has expired"),
    ("WRONG_VERSION_NUMBER", "check that the server uses TLS"),
)

#: Path of a PEM file, or its content.
Pem = str | Path | bytes


@dataclass(frozen=True, slots=True, repr=False)
class ServerTLS:
    """TLS settings of a server. Each is the path of a PEM file, or its content as bytes.

    Args:
      certificate, key: The server's certificate with its chain, and its private key.
      client_ca: Authority of client certificates (mutual TLS). The server rejects clients without such a certificate.

    The server reads the files again for every connection, so a rotated certificate needs no restart.
    """

    certificate: Pem
    key: Pem
    client_ca: Pem | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Build gRPC's server credentials. Raises ``InvalidArgumentError`` if a file cannot be read."""
        current = self._read()
        limited = LimitedLog(log)

        def reload() -> grpc.ServerCertificateConfiguration | None:  # gRPC calls it in one thread at a time
            nonlocal current
            try:
                loaded = self._read()
            except InvalidArgumentError as error:  # a file is being written: the next connection reads it again
                limited.warning("cannot reload the server certificate, keeping the current one: %s", error)
                return None
            if loaded == current:
                return None
            current = loaded
            log.info("reloaded the server certificate")
            return _configuration(*loaded)

        return grpc.dynamic_ssl_server_credentials(_configuration(*current), reload, self.client_ca is not None)

    def _read(self) -> tuple[bytes | None, ...]:
        pems = ("the certificate", self.certificate), ("the key", self.key), ("client_ca", self.client_ca)
        return tuple(_pem(what, source) for what, source in pems)


@dataclass(frozen=True, slots=True, repr=False)
class ClientTLS:
    """TLS settings of a client. Each file is the path of a PEM file, or its content as bytes.

    Args:
      ca: Authorities that may sign the server's certificate; gRPC's own roots if None.
      certificate, key: The client's certificate and private key, for mutual TLS.
      server_name: Name in the server's certificate, if it differs from the target.

    The client reads the files again for every connection.

    Raises:
      InvalidArgumentError: Only one of *certificate* and *key* is given.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgumentError("the certificate and key of a client must be set together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Build gRPC's channel credentials. Raises ``InvalidArgumentError`` if a file cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=_pem("ca", self.ca),
            private_key=_pem("the key", self.key),
            certificate_chain=_pem("the certificate", self.certificate),
        )


def _configuration(
    certificate: bytes | None, key: bytes | None, client_ca: bytes | None
) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def _pem(what: str, source: Pem | None) -> bytes | None:
    return source if source is None or isinstance(source, bytes) else read_file(what, source)


def advice(details: str, tls: ClientTLS | None) -> str:
    """Return advice on the connection failure that gRPC reports as *details*; empty if there is none.

    Only a connection that was never established counts as closed without a reason.
    """
    closed = any(part in details for part in _CLOSED) and "failed to connect" in details
    if tls is None:
        return "; check whether the server requires TLS" if closed else ""
    known = next((text for part, text in _ADVICE if part in details), "")
    if not known and closed:
        known = "check whether the server requires a client certificate, and set certificate and key"
    return known and f"; {known}"
