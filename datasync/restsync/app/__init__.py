"""The WSGI application: requests in, responses and an event stream out."""
