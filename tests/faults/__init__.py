"""Proof of the stream contract: random histories under faults are recorded, and checked afterwards.

A ``cell`` is one run of a source with a fault and a workload. ``runner`` runs one, ``matrix`` runs many in processes of
their own; ``recorder`` writes the ``history`` of each watcher. The parts are in ``sources``, ``workloads``,
``checkers`` and ``report``; ``soak`` is the long run.
"""
