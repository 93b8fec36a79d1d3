"""Examples of topics of messages."""
