"""A source whose watched store connects through proxies of the test, which disconnect, delay and swallow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from datasync.syncbase.status import TransportState
from tests.faults.history import Silence
from tests.faults.sources.source import Misfortune, Source
from tests.support.proxy import TcpProxy

#: Idle limit of the watched store in seconds, and the time that detection may take beyond it.
IDLE_LIMIT, GRACE = 1.0, 1.0


class BehindProxies(Source):
    """Misfortunes of the way to one or more servers."""

    #: Idle limit of the watched store in seconds.
    idle_limit = IDLE_LIMIT
    #: The proxies of the watched store, one for each server.
    _proxies: Sequence[TcpProxy]

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._plugin: Any = None

    def transport(self) -> Any:
        self._plugin = super().transport()
        return self._plugin

    def on_the_way(self) -> dict[str, Misfortune]:
        """The misfortunes of the connections."""
        chance = self.chance
        return {
            "reset": lambda: self._each(TcpProxy.reset),
            "drop": lambda: self._each(TcpProxy.drop),
            "reset-mid-message": lambda: self._for_a_while(lambda proxy: proxy.reset_after(chance.randint(1, 3000))),
            "cut": self.cut_off,
            "black-hole": lambda: self._swallow(up=True, down=True),
            "black-hole-up": lambda: self._swallow(up=True, down=False),
            "black-hole-down": lambda: self._swallow(up=False, down=True),
            "stall": lambda: self._unheard(lambda: self._each(TcpProxy.freeze), self._mend),
            "delay": lambda: self._for_a_while(lambda proxy: proxy.delay(chance.uniform(0.01, 0.1))),
            "rate": lambda: self._for_a_while(lambda proxy: proxy.rate(chance.randint(2_000, 50_000))),
        }

    def cut_off(self, *meanwhile: Misfortune) -> None:
        """Refuse connections for a while, and run *meanwhile*."""
        self._each(TcpProxy.refuse)
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        self._mend()

    def _each(self, happens: Callable[[TcpProxy], object]) -> None:
        for proxy in self._proxies:
            happens(proxy)

    def _mend(self) -> None:
        self._each(TcpProxy.heal)

    def _for_a_while(self, begin: Callable[[TcpProxy], object]) -> None:
        self._each(begin)
        self.faults.healed.wait(self.chance.uniform(0.05, 1.0))
        self._mend()

    def _swallow(self, *, up: bool, down: bool) -> None:
        self._unheard(lambda: self._each(lambda proxy: proxy.black_hole(up=up, down=down)), self._mend)

    def _unheard(self, begin: Misfortune, end: Misfortune) -> None:
        """Make the connection half-open from *begin* to *end*: until that was detected, or for a shorter time."""
        before = self._plugin.status()
        began = time.monotonic()
        begin()
        try:
            if before.state is not TransportState.READY or self.chance.random() < 0.3:
                self.faults.healed.wait(self.chance.uniform(0, 1.3 * self.idle_limit))
            else:
                self._note_silence(began, before.reconnects)
        finally:
            end()

    def _note_silence(self, began: float, reconnects: int) -> None:
        limit = self.idle_limit + GRACE
        until = began + limit + 0.5
        while (now := time.monotonic()) < until and not self.faults.healed.is_set():
            status = self._plugin.status()
            if status.state is not TransportState.READY or status.reconnects > reconnects:
                self.course.silences.append(Silence(began, now, limit))
                return
            # A hole in one direction passes data that needs no response: the connection is not silent yet.
            began = max(began, now - (status.silence or 0.0))
            self.faults.healed.wait(0.01)
        self.course.silences.append(Silence(began, None, limit, now))
