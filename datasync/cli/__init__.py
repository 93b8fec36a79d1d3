"""The ``datasync`` command; needs the extra ``cli``."""
