"""The provider that the OpenFeature SDK asks for flags.

Source: contract C15, C20; the specification of OpenFeature for providers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import ErrorCode, FlagNotFoundError, ParseError, ProviderNotReadyError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider, Metadata

from datasync.consumer.view.condition import ViewState
from datasync.consumer.view.notices import ValueChange
from datasync.consumer.view.view import View
from datasync.errors import DatasyncError, InvalidArgumentError
from datasync.openfeature.flag import evaluate
from datasync.runtime.threads import ForkGuard, Worker
from datasync.runtime.timeouts import check_timeout

#: Seconds between two looks at the state of the view.
LOOK = 1.0
_NOBODY = EvaluationContext()


class DatasyncProvider(AbstractProvider):
    """Answers the SDK from *view*: ``api.set_provider_and_wait(DatasyncProvider(open_view(url, "flags/")))``.

    A stored value is the value of a flag, or an object with variants and rules: see :mod:`datasync.openfeature.flag`.
    A flag whose stored value becomes invalid JSON keeps its last good value. While the source is lost, the reason is
    ``STALE``. The SDK's handlers are notified of changed flags, and of READY, STALE and ERROR.

    Args:
      view: The flags by key, with the JSON codec. The provider does not close it.
      timeout: Seconds that the initialization waits for the source. A view with a cache file need not wait for it.

    Threads: any. It runs one thread from the initialization to the shutdown, which a forked child starts again at its
    first evaluation.
    """

    def __init__(self, view: View[Any], *, timeout: float = 10.0) -> None:
        super().__init__()
        if not isinstance(view, View):
            raise InvalidArgumentError(f"a provider needs a view, not a {type(view).__name__}")
        self._view = view
        self._timeout = check_timeout(timeout)
        self._state = ViewState.INITIALIZING
        self._worker: Worker | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._guard = ForkGuard("the provider")
        self._started: dict[int, object] = {}  # by process

    def get_metadata(self) -> Metadata:
        return Metadata(name="datasync")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Wait until there are flags. Raises ``ProviderNotReadyError``; READY follows when there are some later."""
        try:
            state = self._view.state
            if state is not ViewState.STALE:  # then there are those of the cache file
                self._view.wait_synced(self._timeout)
                state = self._view.state
        except DatasyncError as error:
            self._state = ViewState.ERROR
            raise ProviderNotReadyError(str(error)) from error
        finally:
            self._stop()
            self._unsubscribe = self._view.on_changes(self._announce)
            self._start()
        # The SDK announces READY after this; the thread announces what differs from it.
        self._state = ViewState.READY

    def shutdown(self) -> None:
        """End the thread. The view goes on."""
        self._stop()

    def _stop(self) -> None:
        unsubscribe, self._unsubscribe = self._unsubscribe, None
        if unsubscribe is not None:
            unsubscribe()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, default_value, evaluation_context, (bool,))

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, default_value, evaluation_context, (str,))

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, default_value, evaluation_context, (int,))

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key, default_value, evaluation_context, (int, float))

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[Any] | Mapping[str, Any],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[Any] | Mapping[str, Any]]:
        return self._resolve(flag_key, default_value, evaluation_context, (dict, list))

    def _resolve(
        self, key: str, default: Any, context: EvaluationContext | None, kinds: tuple[type, ...]
    ) -> FlagResolutionDetails[Any]:
        if self._guard.forked:
            self._start_in_child()
        try:
            stored = self._view[key]
        except KeyError:
            problem = self._view.problems.get(key)
            if problem is not None:
                raise ParseError(f"the flag {key!r}: {problem}") from None
            if self._state in (ViewState.INITIALIZING, ViewState.ERROR):
                raise ProviderNotReadyError(f"the flag {key!r}: the source was not read yet") from None
            raise FlagNotFoundError(f"the flag {key!r} does not exist") from None
        except DatasyncError as error:
            raise ProviderNotReadyError(str(error)) from error
        details = evaluate(key, stored, default, context or _NOBODY)
        value = details.value
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeMismatchError(f"the flag {key!r} has a value of the type {type(value).__name__}")
        if float in kinds:
            details.value = float(details.value)  # the SDK takes a whole number for a mismatch
        if self._state is ViewState.STALE:
            details.reason = Reason.STALE
        return details

    def _start(self) -> None:
        self._worker = Worker("openfeature-state", self._watch_state)
        self._worker.start()

    def _start_in_child(self) -> None:
        """Start the thread that a fork has left behind, in one thread of those that evaluate at once."""
        mark = object()
        if self._started.setdefault(os.getpid(), mark) is mark:
            self._start()
            self._guard = ForkGuard("the provider")

    def _watch_state(self, worker: Worker) -> None:
        while not worker.stopping.wait(LOOK):
            status = self._view.status()
            before, self._state = self._state, status.state
            if status.state is before:
                continue
            if status.state is ViewState.READY:
                self.emit_provider_ready(ProviderEventDetails())
            elif status.state is ViewState.STALE:
                self.emit_provider_stale(ProviderEventDetails(message=status.error_text))
            elif status.state is ViewState.ERROR:
                details = ProviderEventDetails(message=status.error_text, error_code=ErrorCode.PROVIDER_NOT_READY)
                self.emit_provider_error(details)
            elif status.state is ViewState.CLOSED:
                details = ProviderEventDetails(message="the view is closed", error_code=ErrorCode.PROVIDER_FATAL)
                self.emit_provider_error(details)

    def _announce(self, differences: Mapping[str, ValueChange]) -> None:
        self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=sorted(differences)))
