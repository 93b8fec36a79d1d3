"""TLS credentials, and the diagnosis of a failed handshake, which grpc does not report."""

from __future__ import annotations

import socket
import ssl

import grpc

from datasync.errors import InvalidArgumentError
from datasync.keyval.etcd.config import EtcdConfig
from datasync.runtime.files import read_file
from datasync.runtime.sockets import wrap_tls

#: A part of a handshake's error, and the advice for it; the first match applies.
_ADVICE = (
    ("expired", "renew it, and check this machine's clock"),
    ("not yet valid", "check the clocks of both machines"),
    ("issuer", "name the authority that signed it in ca-file"),
    ("self", "name the authority that signed it in ca-file"),
    ("mismatch", "name the server as its certificate does"),
    ("not valid for", "name the server as its certificate does"),
    ("certificate", "set cert-file and key-file to a pair that the server accepts"),
    ("unknown ca", "set cert-file and key-file to a pair that the server accepts"),
    ("", "does the server speak TLS?"),
)


def make_credentials(config: EtcdConfig) -> grpc.ChannelCredentials:
    """Return credentials from the PEM files of *config*, read again for each channel to pick up rotated certificates.

    Raises:
      InvalidArgumentError: A file cannot be read or is not PEM, or key and certificate do not match.
    """
    _context(config)  # grpc would only report that there is no connection
    return grpc.ssl_channel_credentials(
        root_certificates=_read("ca-file", config.ca_file),
        private_key=_read("key-file", config.key_file),
        certificate_chain=_read("cert-file", config.cert_file),
    )


def explain(config: EtcdConfig, address: str) -> str:
    """Return why a connection to *address* fails, as found by a handshake of our own; "" if it does not fail.

    grpc reports only that there is no connection, with the cause at best in its own log. Takes up to two dial timeouts.
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
            raw.getpeername()  # raises if the peer has disconnected: a handshake would fail
            with wrap_tls(context, raw, server_hostname=host) as secured:
                if not config.secure:
                    return "the server speaks TLS: set ca-file"
                # In TLS 1.3 the server checks our certificate after our side of the handshake is complete.
                secured.settimeout(min(0.3, config.dial_timeout))
                secured.recv(1)
                return ""
    except ssl.SSLCertVerificationError as error:
        return f"the server's certificate is not accepted ({error.verify_message}){_advice(error.verify_message)}"
    except ssl.SSLError as error:
        return _failure(_reason(error)) if config.secure else ""
    except ConnectionResetError:  # a server without TLS either resets or closes the connection
        return _failure("connection reset") if config.secure else ""
    except OSError:
        return ""


def _context(config: EtcdConfig) -> ssl.SSLContext:
    if not config.secure:
        # Only finds out if the other side speaks TLS; no data is sent.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        for name, path in (("ca-file", config.ca_file), ("cert-file", config.cert_file), ("key-file", config.key_file)):
            _read(name, path)
        try:
            context = ssl.create_default_context(cafile=config.ca_file or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2  # regardless of the system's settings
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise InvalidArgumentError(f"there is no PEM certificate in the ca-file {config.ca_file}") from error
        if config.cert_file:
            try:
                # An encrypted key is an error: without a password argument OpenSSL would prompt on the terminal.
                context.load_cert_chain(config.cert_file, config.key_file, password="")
            except (OSError, ValueError) as error:
                files = f"the cert-file {config.cert_file} and the key-file {config.key_file}"
                message = f"{files} must be PEM, without a password, and match ({_reason(error)})"
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
