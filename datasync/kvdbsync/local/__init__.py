"""Transactions inside this process, for a program that is its own source."""

from datasync.kvdbsync.local.bytes_txn import BytesTxn
from datasync.kvdbsync.local.proto_txn import ProtoTxn
from datasync.kvdbsync.local.registry import DEFAULT_REGISTRY

__all__ = [
    # Transactions
    "ProtoTxn",
    "BytesTxn",
    # The default registry
    "DEFAULT_REGISTRY",
]
