"""Metrics, probes and logs for operators, each in a small program."""
