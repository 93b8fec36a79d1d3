"""The server: turns the requests of senders into changes of one registry per source."""
