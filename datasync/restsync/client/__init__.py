"""The client: requests to a server, and its event stream as a source."""
