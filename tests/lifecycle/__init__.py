"""What becomes of the library when its process forks, is told to end, is patched by gevent, or just goes on and on.

Contract C15 and the invariants I15, I16, I17. Where the interpreter itself is the subject, the test runs a program of
this folder in a process of its own. The long ones: ``python -m pytest tests/lifecycle -m slow``.
"""
