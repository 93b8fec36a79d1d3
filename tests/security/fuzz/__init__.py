"""Bytes from outside against every parser of them: the same targets for a short run in the tests and for a long one.

``python -m tests.security.fuzz --target urls --seconds 60`` runs one; ``--list`` names them.
"""
