"""One connection to a Redis server: commands and scripts, bounded in time, and closed in forked children.

It is a connection of redis-py without its client above, which would repeat commands in silence.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.exceptions import DataError, NoScriptError, RedisError
from redis.exceptions import TimeoutError as NoResponse
from redis.retry import Retry

from datasync.keyval.redis.config import RedisConfig
from datasync.keyval.redis.errors import translate
from datasync.keyval.redis.scripts import Script
from datasync.runtime.sockets import close_in_children
from datasync.runtime.threads import in_main_thread, step_of

Address = tuple[str, int]

#: Bytes above which an argument is sent by itself.
LARGE = 64 << 10


class Link:
    """A connection to the server at *address*, made at once.

    Args:
      timeout: Seconds to wait for one response; by default that of the configuration.
      connect: Seconds to wait for the connection, likewise.
      protocol: 3 to receive what the server sends without being asked.
      credentials: User and password, where they are not those of the configuration.

    Raises:
      StoreConnectionError: It cannot be reached.
      PermissionDenied: It rejects user or password.

    Threads: one at a time; ``cancel``: any.
    """

    def __init__(
        self,
        config: RedisConfig,
        address: Address,
        *,
        timeout: float | None = None,
        connect: float | None = None,
        protocol: int = 2,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self.address = address
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.server = f"{host}:{address[1]}"
        #: True while the server only answers about a slot that it is given if it is asked to.
        self.asking = False
        self._timeout = config.timeout if timeout is None else timeout
        user, password = credentials or (config.username, config.password)
        kind: Callable[..., Any] = partial(SSLConnection, **_tls(config)) if config.secure else Connection
        self._connection = kind(
            host=address[0],
            port=address[1],
            db=0 if credentials else config.db,
            username=user or None,
            password=password or None,
            socket_timeout=self._timeout,
            socket_connect_timeout=config.connect_timeout if connect is None else connect,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            protocol=protocol,
        )
        try:
            self._connection.connect()
        except (RedisError, OSError) as error:
            self._connection.disconnect()
            raise translate(error, "connecting", self.server) from error
        # Kept, because the connection forgets it when it fails: another thread may be about to shut it down.
        self._socket: socket.socket = self._connection._sock
        close_in_children(self._socket)

    @property
    def stale(self) -> bool:
        """True if the server has closed the connection, or sent what nobody asked for."""
        if self._connection._sock is None:
            return True
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | select.POLLHUP | select.POLLERR)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def call(self, *command: Any, what: str, token: str | None = None) -> Any:
        """Send *command* and return its response. With *token* it may write, and the outcome may be unknown."""
        try:
            return self._exchange(command)
        except (RedisError, OSError) as error:
            raise translate(error, what, self.server, token=token) from error
        except BaseException:  # such as ^C: a response may be on its way, which is not that of the next command
            self.close()
            raise

    def run(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any], *, what: str, token: str | None = None
    ) -> Any:
        """Run *script* and return its result."""
        tail = (len(keys), *keys, *arguments)
        try:
            return self._exchange((b"EVALSHA", script.digest, *tail))
        except NoScriptError:  # the server is new, or was told to forget its scripts
            return self.call("EVAL", script.text, *tail, what=what, token=token)
        except (RedisError, OSError) as error:
            raise translate(error, what, self.server, token=token) from error
        except BaseException:
            self.close()
            raise

    def _exchange(self, command: Sequence[Any]) -> Any:
        if self.asking:
            self._connection.send_command("ASKING")
            self._connection.read_response()
        self._connection.send_packed_command(packed(command))
        if in_main_thread():
            self._await_response()
        return self._connection.read_response()

    def _await_response(self) -> None:
        """Wait for the beginning of a response, a second at a time in the main thread, so that signal handlers run."""
        until = time.monotonic() + self._timeout
        while not self._connection.can_read(step_of(max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                self._connection.disconnect()
                raise NoResponse("no response")

    def on_invalidated(self, handler: Callable[[list[Any]], None]) -> None:
        """Call *handler* with each notice of changed keys that is received."""
        self._connection._parser.set_invalidation_push_handler(handler)

    def receive(self, timeout: float) -> bool:
        """Receive a message that the server sends without being asked. Return False if none comes in *timeout* s."""
        try:
            if not self._connection.can_read(timeout):
                return False
            self._connection.read_response(push_request=True)
            return True
        except (RedisError, OSError) as error:
            raise translate(error, "following changes", self.server) from error

    def cancel(self) -> None:
        """Let a call that waits fail, and all later ones. May be called twice."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._connection.disconnect()


def packed(command: Sequence[Any]) -> list[bytes]:
    """Return the bytes of *command* in the Redis protocol, of which large arguments are not copied.

    The client library copies all that it has so far for each argument, which takes longer than a commit does.
    """
    chunks: list[bytes] = []
    pieces = [b"*%d\r\n" % len(command)]
    for argument in command:
        data = argument if isinstance(argument, bytes) else _encoded(argument)
        if len(data) > LARGE:
            chunks += (b"%b$%d\r\n" % (b"".join(pieces), len(data)), data)
            pieces = [b"\r\n"]
        else:
            pieces.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return [*chunks, b"".join(pieces)]


def _encoded(argument: object) -> bytes:
    if isinstance(argument, (bytearray, memoryview)):  # their text would be a value, too
        return bytes(argument)
    if isinstance(argument, (str, int, float)):
        return str(argument).encode()
    raise DataError(f"an argument of a command cannot be of the type {type(argument).__name__}")


def _tls(config: RedisConfig) -> dict[str, Any]:
    return {
        "ssl_ca_certs": config.ca_file or None,
        "ssl_certfile": config.cert_file or None,
        "ssl_keyfile": config.key_file or None,
        "ssl_cert_reqs": "required" if config.verify else "none",
        "ssl_check_hostname": config.verify,
    }
