"""The ``datasync`` command. It needs the extra ``cli``."""
