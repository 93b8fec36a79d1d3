"""The gRPC transport: server, client, faults."""
