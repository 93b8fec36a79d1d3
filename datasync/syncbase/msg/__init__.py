"""The wire form of changes and resyncs: the messages of ``datamsg.proto``, and the way from and to syncbase's types."""

from datasync.syncbase.msg.convert import (
    CONTENT_JSON,
    CONTENT_PROTO,
    change_reply,
    change_request,
    delete_request,
    put_request,
    read_change,
    read_reply,
    read_resync,
    read_resync_replies,
    resync_replies,
    resync_requests,
)
from datasync.syncbase.msg.datamsg_pb2 import (
    DEL,
    PUT,
    DataChangeReply,
    DataChangeRequest,
    DataResyncReplies,
    DataResyncRequests,
    PingReply,
    PingRequest,
    Seq,
)

__all__ = [
    # Requests, as a sender makes them
    "change_request",
    "put_request",
    "delete_request",
    "resync_requests",
    # Requests, as a receiver reads them
    "read_change",
    "read_resync",
    # Answers, as a receiver makes them and as a sender reads them
    "change_reply",
    "resync_replies",
    "read_reply",
    "read_resync_replies",
    # Forms of content
    "CONTENT_JSON",
    "CONTENT_PROTO",
    # Messages
    "DataChangeRequest",
    "DataChangeReply",
    "DataResyncRequests",
    "DataResyncReplies",
    "PingRequest",
    "PingReply",
    "Seq",
    "PUT",
    "DEL",
]
