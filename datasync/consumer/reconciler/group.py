"""Several reconcilers of one watcher, made by a decorator.

Source: contract C20.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from datasync.api import KeyValProtoWatcher
from datasync.codecs.api import Codec
from datasync.consumer.pairs import JSON
from datasync.consumer.reconciler.reconciler import Reconciler
from datasync.errors import AggregateError
from datasync.runtime.closing import Closable

T = TypeVar("T")


class Reconcilers(Closable):
    """The reconcilers of *watcher*, which end together.

    ::

        network = Reconcilers(plugin)

        @network.reconcile("vhost/", codec)
        def vhosts(key, value, previous): ...

    Threads: any, but one that decorates.
    """

    def __init__(self, watcher: KeyValProtoWatcher) -> None:
        self._watcher = watcher
        self._members: list[Reconciler[Any]] = []

    @property
    def members(self) -> tuple[Reconciler[Any], ...]:
        """The reconcilers, in the order in which they were made."""
        return tuple(self._members)

    def reconcile(
        self,
        prefix: str,
        codec: Codec[T] = JSON,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Callable[[Callable[[str, T | None, T | None], object]], Reconciler[T]]:
        """Make a :class:`Reconciler` of the decorated function, which is its ``apply``.

        Args:
          name: The resync name; the name of the function by default.
          options: Further arguments of the reconciler.
        """

        def decorate(apply: Callable[[str, T | None, T | None], object]) -> Reconciler[T]:
            resync_name = name or str(getattr(apply, "__name__", prefix))
            made = Reconciler(self._watcher, resync_name, prefix, apply=apply, codec=codec, **options)
            self._members.append(made)
            return made

        return decorate

    def wait_synced(self, timeout: float) -> None:
        """Wait for each reconciler, *timeout* seconds in all; raises as :meth:`Reconciler.wait_synced`."""
        until = monotonic() + timeout
        for one in self._members:
            one.wait_synced(max(0.0, until - monotonic()))

    def reconcile_all(self) -> None:
        """Call every key of every reconciler again."""
        for one in self._members:
            one.reconcile_all()

    def close(self) -> None:
        """Close every reconciler. Raises ``AggregateError`` with all failures at the end. May be called twice."""
        errors: list[BaseException] = []
        for one in reversed(self._members):
            try:
                one.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise AggregateError(errors) from errors[0]
