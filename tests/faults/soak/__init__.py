"""A long run with faults: one process on every kind of source, measured and checked while it goes on.

``world`` is the run, ``places`` are the sources with all that can go wrong there, ``peer`` is a writer or a server in a
process of its own, ``agent`` is the process that is measured, ``subscribers`` are in it and ``views`` checks each event
there, ``verdict`` judges the figures and ``plot`` draws them.
"""
