"""The calls of a Consul agent's HTTP interface, with their errors.

Source: cn-infra ``db/keyval/consul/consul.go``; contract C16, C17, C23.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import quote

from datasync.errors import ClosedError, UnknownOutcome
from datasync.keyval.consul.config import ConsulConfig
from datasync.keyval.consul.errors import translate, unexpected_response
from datasync.runtime.http_client.connections import ReceivedResponse, RequestPool, StreamConnection

#: Bytes of a response; Consul has no pages.
MAX_RESPONSE = 1 << 30
#: The response to a transaction of which a check failed.
CONFLICT = 409


class Refusal(NamedTuple):
    """The reasons for which Consul did not apply a transaction: the place of an operation, and the text."""

    reasons: tuple[tuple[int, str], ...]

    def mentions(self, part: str) -> bool:
        """True if a reason has the text *part*."""
        return any(part in text for _, text in self.reasons)


class ConsulClient:
    """Sends single requests to one agent, each once. Threads: any."""

    def __init__(self, config: ConsulConfig) -> None:
        self.config = config
        self.address = config.server
        self._context = config.make_context()
        self._headers = {"X-Consul-Token": config.token} if config.token else {}
        self._scope = f"dc={quote(config.datacenter, safe='')}" if config.datacenter else ""
        self._pool = RequestPool(
            self.address,
            self._context,
            self._headers,
            timeout=config.operation_timeout,
            connect_timeout=config.dial_timeout,
            max_response=MAX_RESPONSE,
        )

    @property
    def name(self) -> str:
        """The location, for messages."""
        address = self.address
        return f"consul://{address.host}:{address.port}{address.path}"

    @property
    def closed(self) -> bool:
        return self._pool.closed

    @property
    def forked(self) -> bool:
        """True in a child of the process that made the client."""
        return self._pool.guard.forked

    def check_usable(self) -> None:
        """Raise ``ForkedError`` in a forked child, ``ClosedError`` after ``close``."""
        self._pool.guard.check()
        if self._pool.closed:
            raise ClosedError(f"{self.name} is closed")

    def call(
        self,
        method: str,
        path: str,
        what: str,
        *query: str,
        body: object = None,
        accept: tuple[int, ...] = (),
        write: bool = False,
        timeout: float | None = None,
    ) -> ReceivedResponse:
        """Send a request and return its response if the status is 200 or one of *accept*.

        Args:
          what: The action, for messages.
          body: It is sent as JSON; bytes are sent as they are.
          write: The request may change keys.

        Raises:
          StoreError, InvalidArgumentError: As the table of errors says; ``UnknownOutcome`` for a write only.
        """
        self.check_usable()
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        response = self._pool.send(method, self.target(path, *query), what, body=data, write=write, timeout=timeout)
        if response.status == 200 or response.status in accept:
            return response
        raise translate(what, self.name, response, write=write)

    def target(self, path: str, *query: str) -> str:
        """Return *path* with *query* and the datacenter."""
        wanted = "&".join(part for part in (*query, self._scope) if part)
        return f"{path}?{wanted}" if wanted else path

    def transact(self, body: bytes, what: str) -> list[dict[str, Any]] | Refusal:
        """Send a transaction. Return the pairs of its results, or why it was not applied.

        Raises:
          UnknownOutcome: It may have been applied.
        """
        response = self.call("PUT", "/v1/txn", what, body=body, accept=(CONFLICT,), write=True)
        try:
            told = json.loads(response.data)
            if response.status == CONFLICT:
                return Refusal(tuple((int(one["OpIndex"]), str(one["What"])) for one in told["Errors"]))
            return [_checked(one["KV"]) for one in told["Results"]]
        except (ValueError, TypeError, KeyError, RecursionError):  # their text may quote a value
            pass
        raise UnknownOutcome(f"{what}: {unexpected_response(what, self.name)}; it may have been applied")

    def open_stream(self, timeout: float | None = None) -> StreamConnection:
        """Return a connection for requests of at most *timeout* seconds, by default for blocking queries.

        It connects with the first request.
        """
        config = self.config
        limit = config.idle_limit if timeout is None else timeout
        return StreamConnection(self.address, self._context, min(config.dial_timeout, limit), limit)

    def call_on(
        self,
        connection: StreamConnection,
        method: str,
        path: str,
        what: str,
        *query: str,
        accept: tuple[int, ...] = (),
    ) -> ReceivedResponse:
        """As ``call``, on *connection*, which another thread can cut."""
        self.check_usable()
        connection.request(self.path(self.target(path, *query)), self.headers, method)
        response = connection.response()
        received = ReceivedResponse(response.status, response.headers, connection.read_rest(MAX_RESPONSE))
        if received.status == 200 or received.status in accept:
            return received
        raise translate(what, self.name, received)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request on a connection of ``open_stream``."""
        return {**self._headers, "Accept-Encoding": "identity"}

    def path(self, path: str) -> str:
        """Return *path* as the agent's gateway has it."""
        return self.address.path + path

    def close(self) -> None:
        self._pool.close()


def _checked(pair: dict[str, Any]) -> dict[str, Any]:
    """Return *pair*. Raises ``TypeError`` or ``KeyError`` unless it has a key and an index."""
    if not isinstance(pair["Key"], str) or not isinstance(pair["ModifyIndex"], int):
        raise TypeError("not a pair of Consul")
    return pair
