"""Programs that join two stores, or a store and files."""

__all__: list[str] = []
