"""Tools over stores: what operators run, apart from the command line."""

__all__: list[str] = []
