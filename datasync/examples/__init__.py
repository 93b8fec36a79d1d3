"""Example programs, one idea each. Run them as modules: ``python -m datasync.examples.agent``."""
