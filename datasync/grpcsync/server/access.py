"""Refusal of calls by their metadata, before gRPC reads a message of them.

gRPC reads the request of a unary call before it calls the handler, so that a stranger's message would take memory up to
the size limit, once per call. Of a stream it reads nothing until the handler asks for it, and HTTP/2 flow control
leaves the rest with the sender. On the wire both are the same.

Source: contract C16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grpc

#: The metadata of a call.
Metadata = Iterable[tuple[str, str | bytes]]


class GuardedHandlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no annotations
    """The handlers of *service* by method name, for calls whose metadata is *allowed*. Others end in *refuse*.

    Args:
      refuse: Called with the context of the call; must abort it.

    Threads: any.
    """

    def __init__(
        self,
        service: str,
        methods: Mapping[str, grpc.RpcMethodHandler],
        allowed: Callable[[Metadata], bool],
        refuse: Callable[[Any], object],
    ) -> None:
        self._methods = {f"/{service}/{name}": handler for name, handler in methods.items()}
        self._allowed = allowed

        def refused(requests: Iterator[bytes], context: Any) -> None:
            refuse(context)

        self._refusal = grpc.stream_unary_rpc_method_handler(refused)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Choose the handler; called by gRPC."""
        handler = self._methods.get(handler_call_details.method)
        if handler is None or self._allowed(handler_call_details.invocation_metadata):
            return handler
        return self._refusal
