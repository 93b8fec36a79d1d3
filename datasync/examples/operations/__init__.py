"""What operators see: metrics, probes and logs, each in a small program."""
