"""A plain TCP balancer: one address for many servers, each connection to the next of them."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from tests.support.proxy import TcpProxy


class Balancer(TcpProxy):
    """Gives each connection to the next of *targets* that accepts it, and misbehaves as its base class does."""

    def __init__(self, targets: Sequence[tuple[str, int]]) -> None:
        self._targets = list(targets)
        self._turn = 0
        #: The place of the target that the last connection went to.
        self.last = 0
        super().__init__(self._targets[0])

    def only(self, place: int | None) -> None:
        """Send new connections to the target at *place* only; None for all of them again. Ends what is there."""
        self._only = place
        self.drop()

    _only: int | None = None

    def heal(self) -> None:
        self._only = None
        super().heal()

    def _connect(self) -> socket.socket:
        refusal = OSError("no target")
        for _ in self._targets:
            place = self._only if self._only is not None else self._turn % len(self._targets)
            self._turn += 1
            try:
                connection = socket.create_connection(self._targets[place], 5)
            except OSError as error:
                refusal = error
                continue
            self.last = place
            return connection
        raise refusal
