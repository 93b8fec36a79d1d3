"""The standard health service, which probes and load balancers ask.

Source: ``grpc.health.v1``; contract section 5.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc

from datasync.errors import DecodeError
from datasync.grpcsync.datasync_health_pb2 import HealthCheckRequest, HealthCheckResponse
from datasync.grpcsync.protocol import SERVICE, serialize
from datasync.grpcsync.server.validation import parse

HEALTH_SERVICE = "grpc.health.v1.Health"
#: Peers that may watch it at a time: each holds a thread, and none has shown a token.
MAX_WATCHERS = 100
CHECK = f"/{HEALTH_SERVICE}/Check"
WATCH = f"/{HEALTH_SERVICE}/Watch"


class HealthService:
    """Says that the adapter serves until it does not. No token is asked for: probes have none.

    Threads: any.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards the two below, and wakes those who watch
        self._serving = True
        self._watchers = 0

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """By path, for the server."""
        return {
            CHECK: grpc.unary_unary_rpc_method_handler(self.check, response_serializer=serialize),
            WATCH: grpc.unary_stream_rpc_method_handler(self.watch, response_serializer=serialize),
        }

    def stop(self) -> None:
        """Say that it does not serve any more; whoever watches is told, and let go."""
        with self._changed:
            self._serving = False
            self._changed.notify_all()

    def check(self, raw: bytes, context: Any) -> HealthCheckResponse:
        service = _service(raw, context)
        if not _known(service):
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {service[:100]!r}")
        return self._answer(service)

    def watch(self, raw: bytes, context: Any) -> Iterator[HealthCheckResponse]:
        service = _service(raw, context)
        over = threading.Event()

        def end() -> None:
            over.set()
            with self._changed:
                self._changed.notify_all()

        with self._changed:
            self._watchers += 1
            crowded = self._watchers > MAX_WATCHERS
        try:
            if crowded:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHERS} watch already")
            if not context.add_callback(end):
                return
            yield self._answer(service)
            with self._changed:
                self._changed.wait_for(lambda: over.is_set() or not self._serving)
            if not over.is_set():
                yield self._answer(service)
        finally:
            with self._changed:
                self._watchers -= 1

    def _answer(self, service: str) -> HealthCheckResponse:
        if not _known(service):
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        serving = HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=serving)


def _service(raw: bytes, context: Any) -> str:
    try:
        service: str = parse(raw, HealthCheckRequest).service
        return service
    except DecodeError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise  # not reached: abort() raises


def _known(service: str) -> bool:
    return service in ("", SERVICE)
