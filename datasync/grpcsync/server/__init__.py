"""The server: requests of senders become changes of a registry per source."""
