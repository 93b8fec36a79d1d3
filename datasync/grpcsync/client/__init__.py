"""The client: changes and resyncs sent to a server, pipelined and acknowledged."""
