"""Requests over HTTP, as the REST client and the driver of Consul send them. Needs ``urllib3``."""
