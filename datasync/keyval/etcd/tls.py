"""Credentials for TLS, and the question that grpc does not answer: why a handshake fails."""

from __future__ import annotations

import socket
import ssl

import grpc

from datasync.errors import InvalidArgumentError
from datasync.keyval.etcd.config import EtcdConfig
from datasync.runtime.files import read_file

#: Part of the reason that a handshake gives, and what helps; the first that fits counts.
_ADVICE = (
    ("expired", "renew it, and look at this machine's clock"),
    ("not yet valid", "look at the clocks of both machines"),
    ("issuer", "name the authority that signed it in ca-file"),
    ("self", "name the authority that signed it in ca-file"),
    ("mismatch", "name the server as its certificate does"),
    ("not valid for", "name the server as its certificate does"),
    ("certificate", "set cert-file and key-file to a pair that the server accepts"),
    ("unknown ca", "set cert-file and key-file to a pair that the server accepts"),
    ("", "does the server speak TLS?"),
)


def make_credentials(config: EtcdConfig) -> grpc.ChannelCredentials:
    """Credentials from the PEM files of *config*, read now, so that a rotated certificate is taken up.

    Raises:
      InvalidArgumentError: A file cannot be read, is no PEM, or key and certificate do not fit.
    """
    _context(config)  # grpc itself would only say that there is no connection
    return grpc.ssl_channel_credentials(
        root_certificates=_read("ca-file", config.ca_file),
        private_key=_read("key-file", config.key_file),
        certificate_chain=_read("cert-file", config.cert_file),
    )


def explain(config: EtcdConfig, address: str) -> str:
    """Why a connection to *address* fails, as far as a handshake of our own tells; empty when it does not.

    grpc says only that there is no connection, with the cause in its own log at best. Takes up to two dial timeouts.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        context = _context(config)
    except InvalidArgumentError as error:
        return str(error)
    try:
        with socket.create_connection((host, int(port)), config.dial_timeout) as raw:
            raw.settimeout(config.dial_timeout)
            raw.getpeername()  # one that has gone already: wrap_socket() would raise as well, and close nothing
            with context.wrap_socket(raw, server_hostname=host) as secured:
                if not config.secure:
                    return "the server speaks TLS: set ca-file"
                # In TLS 1.3 the server judges our certificate after our side of the handshake is done.
                secured.settimeout(min(0.3, config.dial_timeout))
                secured.recv(1)
                return ""
    except ssl.SSLCertVerificationError as error:
        return f"the server's certificate is not accepted ({error.verify_message}){_advice(error.verify_message)}"
    except ssl.SSLError as error:
        return _failure(_reason(error)) if config.secure else ""
    except ConnectionResetError:  # one without TLS ends it so, or in order: which comes first is chance
        return _failure("connection reset") if config.secure else ""
    except OSError:
        return ""


def _context(config: EtcdConfig) -> ssl.SSLContext:
    if not config.secure:
        # Asks only whether the other side speaks TLS at all; nothing is sent over it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        for name, path in (("ca-file", config.ca_file), ("cert-file", config.cert_file), ("key-file", config.key_file)):
            _read(name, path)
        try:
            context = ssl.create_default_context(cafile=config.ca_file or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2  # whatever the system's settings allow
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise InvalidArgumentError(f"there is no PEM certificate in the ca-file {config.ca_file}") from error
        if config.cert_file:
            try:
                # A key with a password is an error: without this the terminal would be asked for it.
                context.load_cert_chain(config.cert_file, config.key_file, password="")
            except (OSError, ValueError) as error:
                files = f"the cert-file {config.cert_file} and the key-file {config.key_file}"
                message = f"{files} must be PEM, without a password, and fit together ({_reason(error)})"
                raise InvalidArgumentError(message) from error
    context.set_alpn_protocols(["h2"])
    return context


def _read(name: str, path: str) -> bytes | None:
    return read_file(f"the {name}", path) if path else None


def _failure(reason: str) -> str:
    return f"the TLS handshake fails ({reason}){_advice(reason)}"


def _advice(reason: str) -> str:
    return next((f": {advice}" for part, advice in _ADVICE if part in reason), "")


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()
