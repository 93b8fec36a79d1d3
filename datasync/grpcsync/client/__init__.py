"""The client: sends changes and resyncs to a server, pipelined and acknowledged."""
