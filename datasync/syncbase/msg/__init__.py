"""The messages of ``datamsg.proto``, and their conversion from and to the types of syncbase."""

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
    # Requests of a sender
    "change_request",
    "put_request",
    "delete_request",
    "resync_requests",
    # Requests, read by a receiver
    "read_change",
    "read_resync",
    # Replies of a receiver, and their errors for a sender
    "change_reply",
    "resync_replies",
    "read_reply",
    "read_resync_replies",
    # Content types
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
