"""A call that was sent before its response is needed."""

from __future__ import annotations

from typing import Any, Generic

from datasync.keyval.etcd.endpoint import Endpoint, result_of
from datasync.keyval.etcd.methods import ResponseT


class PendingCall(Generic[ResponseT]):
    """A call to *endpoint* that was sent before its response is needed. Threads: one."""

    def __init__(self, endpoint: Endpoint, call: Any) -> None:
        self.endpoint = endpoint
        self._call = call

    def result(self) -> ResponseT:
        """Wait for the response. Call it once; raises what ``Endpoint.unary`` raises."""
        call, self._call = self._call, None
        result: ResponseT = result_of(call)
        return result

    def cancel(self) -> None:
        """Cancel the call unless its result was taken."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
