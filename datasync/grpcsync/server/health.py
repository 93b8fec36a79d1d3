"""The standard health service for probes and load balancers.

Source: ``grpc.health.v1``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from datasync.errors import DecodeError
from datasync.grpcsync.datasync_health_pb2 import HealthCheckRequest, HealthCheckResponse
from datasync.grpcsync.protocol import SERVICE, serialize
from datasync.grpcsync.server.validation import parse
from datasync.runtime.threads import Flag, SteppedCondition

HEALTH_SERVICE = "grpc.health.v1.Health"
#: Maximum number of concurrent ``Watch`` calls: each holds a thread, and none needs a token.
MAX_WATCHERS = 100
#: Maximum number of calls whose request is being read: each may take memory up to the message size.
MAX_READING = 4
CHECK = f"/{HEALTH_SERVICE}/Check"
WATCH = f"/{HEALTH_SERVICE}/Watch"


class HealthService:
    """Reports SERVING until ``stop``. It requires no token, because probes have none. Threads: any.

    Its methods are declared as streams, which are the same on the wire: gRPC would read the request of a unary call
    before it calls the handler, and strangers could fill the memory with requests that never end.
    """

    def __init__(self) -> None:
        self._changed = SteppedCondition()  # guards the three below, and wakes watch calls
        self._serving = True
        self._watchers = 0
        self._reading: list[Any] = []  # the contexts of calls whose request is being read, the oldest first

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler of the service."""
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(self.check, response_serializer=serialize),
            "Watch": grpc.stream_stream_rpc_method_handler(self.watch, response_serializer=serialize),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, methods)

    def stop(self) -> None:
        """Report NOT_SERVING from now on, also to the running watch calls, which then end."""
        with self._changed:
            self._serving = False
            self._changed.notify_all()

    def check(self, requests: Iterator[bytes], context: Any) -> HealthCheckResponse:
        """Handle ``Check``."""
        service = self._read(requests, context)
        if not _known(service):
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {service[:100]!r}")
        return self._response(service)

    def watch(self, requests: Iterator[bytes], context: Any) -> Iterator[HealthCheckResponse]:
        """Handle ``Watch``: send the status, and send it again if it changes."""
        service = self._read(requests, context)
        over = Flag()

        def end() -> None:
            over.set()
            with self._changed:
                self._changed.notify_all()

        with self._changed:
            self._watchers += 1
            full = self._watchers > MAX_WATCHERS
        try:
            if full:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the limit of {MAX_WATCHERS} watches is reached")
            if not context.add_callback(end):
                return
            yield self._response(service)
            with self._changed:
                self._changed.wait_for(lambda: over.is_set() or not self._serving)
            if not over.is_set():
                yield self._response(service)
        finally:
            with self._changed:
                self._watchers -= 1

    def _read(self, requests: Iterator[bytes], context: Any) -> str:
        """Return the name in the request. The call that has been read for the longest time makes room for a new one."""
        with self._changed:
            self._reading.append(context)
            oldest = self._reading.pop(0) if len(self._reading) > MAX_READING else None
        if oldest is not None:
            oldest.cancel()
        try:
            raw = next(requests, None)
        finally:
            with self._changed:
                if context in self._reading:
                    self._reading.remove(context)
        try:
            if raw is not None:
                service: str = parse(raw, HealthCheckRequest).service
                return service
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
        except DecodeError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError("abort() raises")

    def _response(self, service: str) -> HealthCheckResponse:
        if not _known(service):
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        serving = HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=serving)


def _known(service: str) -> bool:
    return service in ("", SERVICE)
