"""Every backend against one contract."""
