"""A small threaded HTTP server for any WSGI application."""
