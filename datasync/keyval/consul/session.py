"""Sessions: created, renewed and destroyed. A key that is bound to a session is deleted with it.

Consul ends a session between one and two times its TTL after the last renewal.

Source: contract C17.
"""

from __future__ import annotations

import json
import math

from datasync.errors import DatasyncError, InvalidArgumentError
from datasync.keyval.consul.client import ConsulClient
from datasync.keyval.consul.errors import unexpected_response
from datasync.runtime.http_client.connections import ReceivedResponse
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: The longest TTL of a session in seconds.
MAX_TTL = 86_400
#: Seconds that a destruction may take. It is optional: the session also ends by itself.
DESTROY_TIMEOUT = 1.0
#: What a renewal does, for messages.
RENEWING = "renewing a session"


def create(client: ConsulClient, ttl: float) -> str:
    """Create a session that ends *ttl* seconds, or up to twice as much, after its last renewal. Return its id."""
    if ttl > MAX_TTL:
        raise InvalidArgumentError(f"a TTL in Consul is at most {MAX_TTL} seconds")
    what = f"creating a session of {ttl:g} s"
    # Without checks: only the TTL ends it. Without a delay: another client may take over its keys at once.
    body = {
        "Name": "datasync",
        "TTL": f"{math.ceil(ttl * 1000)}ms",
        "Behavior": "delete",
        "LockDelay": "0s",
        "Checks": [],
    }
    # A lost session is harmless, because it ends by itself: so this is no write.
    response = client.call("PUT", "/v1/session/create", what, body=body)
    try:
        session = json.loads(response.data)["ID"]
        if isinstance(session, str) and session:
            return session
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise unexpected_response(what, client.name)


def renew(client: ConsulClient, session: str, timeout: float) -> bool:
    """Renew *session*. Return False if it is not there any more."""
    response = client.call("PUT", renewal_path(session), RENEWING, accept=(404,), timeout=timeout)
    return read_renewal(response, session, client.name)


def renewal_path(session: str) -> str:
    """Return the path of a PUT that renews *session*; ``read_renewal`` reads the response, 200 or 404."""
    return f"/v1/session/renew/{session}"


def read_renewal(response: ReceivedResponse, session: str, name: str) -> bool:
    """Return False if *session* is not there any more, by the *response* of *name* to its renewal."""
    if response.status == 404 and session.encode() in response.data:
        return False
    try:
        if response.status == 200 and json.loads(response.data)[0]["ID"] == session:
            return True
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        pass
    raise unexpected_response(RENEWING, name)


def destroy(client: ConsulClient, session: str) -> None:
    """Destroy *session* and delete its keys. If the server cannot be reached, it ends by itself."""
    try:
        end(client, session)
    except DatasyncError as error:
        log.debug("a session could not be destroyed and ends by itself: %s", error)


def end(client: ConsulClient, session: str) -> None:
    """As ``destroy``; raises ``StoreError`` if it may not be destroyed."""
    client.call("PUT", f"/v1/session/destroy/{session}", "destroying a session", timeout=DESTROY_TIMEOUT)


class PutSessions:
    """The sessions of one commit's expiring values, one per TTL. Threads: one."""

    def __init__(self, client: ConsulClient) -> None:
        self._client = client
        self._sessions: dict[float, str] = {}

    def get(self, ttl: float) -> str:
        if ttl not in self._sessions:
            self._sessions[ttl] = create(self._client, ttl)
        return self._sessions[ttl]

    def destroy(self) -> None:
        """Destroy the sessions, because the commit was certainly not applied; the next attempt gets new ones."""
        while self._sessions:
            destroy(self._client, self._sessions.popitem()[1])
