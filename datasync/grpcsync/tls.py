"""Certificates: where they are, and how they get into grpc."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import grpc

from datasync.errors import InvalidArgumentError
from datasync.runtime.files import read_file

log = logging.getLogger(__name__)

#: What grpc says of a connection that the other side ended without a word.
_CUT = ("Socket closed", "Connection reset", "recvmsg", "End of TCP stream")
#: Part of what grpc says, and what helps; the first that fits counts. Versions say it differently.
_ADVICE = (
    ("expired", "the server's certificate has expired: renew it, or look at this machine's clock"),
    ("not yet valid", "look at the clocks of both machines"),
    ("ostname", "the server's certificate is for another name: give server_name, or one that has this name"),
    ("not in peer certificate", "the server's certificate is for another name: give server_name, or one that has it"),
    ("issuer", "name the authority that signed the server's certificate in ca"),
    ("CERTIFICATE_VERIFY_FAILED", "is the authority that signed the server's certificate in ca, and is it in date?"),
    ("WRONG_VERSION_NUMBER", "does the server speak TLS?"),
)

#: A file in PEM form, or its content.
Pem = str | Path | bytes


@dataclass(frozen=True, slots=True, repr=False)
class ServerTLS:
    """What a server shows and asks for: paths to PEM files, or their bytes.

    Args:
      certificate, key: The server's own; the certificate with its chain.
      client_ca: Only clients with a certificate signed by it are let in (mutual TLS).

    Files are read again for every connection, so that a rotated certificate is taken up without a restart.
    """

    certificate: Pem
    key: Pem
    client_ca: Pem | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Raises ``InvalidArgumentError`` when a file cannot be read."""
        shown = self._read()
        return grpc.dynamic_ssl_server_credentials(
            _configuration(shown), _CertificateReloader(self, shown).fetch, self.client_ca is not None
        )

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        return (
            _pem("the certificate", self.certificate),
            _pem("the key", self.key),
            None if self.client_ca is None else _pem("client_ca", self.client_ca),
        )


@dataclass(frozen=True, slots=True, repr=False)
class ClientTLS:
    """What a client trusts and shows: paths to PEM files, or their bytes.

    Args:
      ca: Who may have signed the server's certificate; the roots that come with grpc when None.
      certificate, key: The client's own, for mutual TLS.
      server_name: The name that the server's certificate is for, where it is not the one in the target.

    Files are read again for every connection.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgumentError("a client certificate and its key come together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises ``InvalidArgumentError`` when a file cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=None if self.ca is None else _pem("ca", self.ca),
            private_key=None if self.key is None else _pem("the key", self.key),
            certificate_chain=None if self.certificate is None else _pem("the certificate", self.certificate),
        )


class _CertificateReloader:
    """Gives grpc a new configuration when the files have changed. Threads: grpc's own, one at a time."""

    def __init__(self, tls: ServerTLS, shown: tuple[bytes, bytes, bytes | None]) -> None:
        self._tls = tls
        self._shown = shown

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            found = self._tls._read()
        except InvalidArgumentError as error:  # being written right now: the next connection sees it
            log.warning("the certificate in use is kept: %s", error)
            return None
        if found == self._shown:
            return None
        log.info("a new certificate is used from now on")
        self._shown = found
        return _configuration(found)


def _configuration(pems: tuple[bytes, bytes, bytes | None]) -> grpc.ServerCertificateConfiguration:
    certificate, key, client_ca = pems
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def _pem(what: str, source: Pem) -> bytes:
    return source if isinstance(source, bytes) else read_file(what, source)


def advice(said: str, tls: ClientTLS | None) -> str:
    """What helps against the failure of a connection that grpc tells with *said*; empty where nothing is known."""
    cut = any(part in said for part in _CUT) and "failed to connect" in said  # else it was one that had come about
    if tls is None:
        return "; does the server speak TLS?" if cut else ""
    known = next((helps for part, helps in _ADVICE if part in said), "")
    if not known and cut:
        known = "does the server want a certificate of its clients? then give one that it knows"
    return known and f"; {known}"
