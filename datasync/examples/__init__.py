"""Programs to read and to run: ``python -m datasync.examples.agent``, and its neighbours. One idea each."""
