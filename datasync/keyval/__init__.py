"""Key-value stores: ``connect(url)``, brokers that read and write, and what a driver implements."""

from datasync.commits import Batch, Commit
from datasync.keyval.api import Store
from datasync.keyval.broker import BytesBroker, GetResult, ListResult
from datasync.keyval.driver import Contender, Lease, Line, Scan, Stream
from datasync.keyval.history import Version
from datasync.keyval.kvproto import ProtoBroker, ProtoGetResult, ProtoKeyVal, ProtoTxn, ProtoWrapper
from datasync.keyval.locks.leadership import Leadership
from datasync.keyval.locks.lock import Lock
from datasync.keyval.txn import BytesTxn
from datasync.keyval.types import (
    ROOT,
    Capability,
    CommitResult,
    Condition,
    DeleteOp,
    KeyValue,
    LeaseLost,
    PutOp,
    RewoundError,
    WriteOp,
)
from datasync.keyval.urls import DriverEntry, StoreURL, connect, parse_url
from datasync.serializer import Serializer, SerializerJSON, SerializerProto

__all__ = [
    # Open a store
    "ROOT",
    "StoreURL",
    "connect",
    "parse_url",
    # Read and write it
    "BytesBroker",
    "BytesTxn",
    "GetResult",
    "KeyValue",
    "ListResult",
    "Version",
    # Exclude others
    "Leadership",
    "Lock",
    # The same with messages
    "ProtoBroker",
    "ProtoGetResult",
    "ProtoKeyVal",
    "ProtoTxn",
    "ProtoWrapper",
    "Serializer",
    "SerializerJSON",
    "SerializerProto",
    # Write a driver
    "Batch",
    "Capability",
    "Commit",
    "CommitResult",
    "Condition",
    "Contender",
    "DeleteOp",
    "DriverEntry",
    "Lease",
    "LeaseLost",
    "Line",
    "PutOp",
    "RewoundError",
    "Scan",
    "Store",
    "Stream",
    "WriteOp",
]
