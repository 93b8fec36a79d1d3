"""A gRPC server as a store that can only be written: the protocol sends changes, and shows no keys.

Source: contract C16, C17; GO_REFERENCE of ``msg.DataMsgService``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar, NoReturn

from datasync.checks import check_key
from datasync.commits import WriteResult
from datasync.errors import InvalidArgumentError, UnsupportedError
from datasync.grpcsync.client.client import Client
from datasync.grpcsync.tls import ClientTLS
from datasync.keyval.api import Store
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.types import Capability, CommitResult, Condition, KeyValue, PutOp, WriteOp
from datasync.runtime.wording import below
from datasync.syncbase.msg.convert import CONTENT_JSON, delete_request
from datasync.syncbase.msg.datamsg_pb2 import PUT, DataChangeRequest

#: Seconds to connect.
CONNECT_TIMEOUT = 5.0


class GrpcStore(Store):
    """The keys of the gRPC server at *url*, ``grpc://host:port`` or ``grpcs://host:port``: single puts and deletes.

    Values are sent as JSON, which every server reads: the server's subscribers decode them. Threads: any.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(self, url: str, *, token: str | None = None) -> None:
        scheme, _, address = url.partition("://")
        target = address.rstrip("/")
        if not target or any(mark in target for mark in "/?#@"):
            raise InvalidArgumentError("the URL of a gRPC server must be grpc://host:port or grpcs://host:port")
        self._name = f"{scheme.lower()}://{target}"
        tls = ClientTLS() if scheme.lower() == "grpcs" else None
        self._client = GrpcBytesClient(target, tls=tls, token=token)

    @property
    def name(self) -> str:
        return self._name

    def check(self) -> None:
        self._client.wait_ready(CONNECT_TIMEOUT)

    def read(self, key: str) -> KeyValue | None:
        self._shows_nothing(f"reading {key!r}")

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        self._shows_nothing(f"listing {below(prefix)}")

    def stream(self, prefix: str, after: int) -> Stream:
        self._shows_nothing(f"watching {prefix!r}")

    def commit(
        self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = (), otherwise: Sequence[WriteOp] = ()
    ) -> CommitResult:
        if len(ops) != 1 or conditions or otherwise or (not isinstance(ops[0], PutOp) and ops[0].prefix):
            raise UnsupportedError(f"{self._name}: the protocol has single puts and deletes only")
        op = ops[0]
        if isinstance(op, PutOp):
            return CommitResult(True, self._client.put_bytes(op.key, op.value).revision, 0)
        result = self._client.delete(op.key)
        return CommitResult(True, result.revision, int(bool(result)))

    def close(self) -> None:
        self.places.close()
        self._client.close()

    def _shows_nothing(self, what: str) -> NoReturn:
        raise UnsupportedError(
            f"{self._name}: {what} is not possible: a gRPC server takes changes and shows no keys. "
            "Use the store behind it, or its REST server"
        )


def _check_json(key: str, data: bytes) -> None:
    """Raise ``InvalidArgumentError`` unless *data* is JSON: the server would take it, and its subscribers could not."""
    try:
        json.loads(data.decode(), parse_constant=_reject_constant)
        return
    except json.JSONDecodeError as error:
        found = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8"
    except (ValueError, RecursionError):
        found = "a number or the nesting is out of range"
    raise InvalidArgumentError(f"the value of {key!r} is not valid JSON ({found}): a gRPC server takes JSON")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


class GrpcBytesClient(Client):
    """A client that writes bytes instead of messages."""

    def put_bytes(self, key: str, data: bytes) -> WriteResult:
        """Set *key* to *data*, which is JSON. Raises as ``put``."""
        self._guard.check()
        check_key(key)
        _check_json(key, data)
        request = DataChangeRequest(key=key, operationType=PUT, content=data, content_type=CONTENT_JSON)
        delete_request(key)  # validates the key
        return self._wait(self._submit(request, repr(key)))
