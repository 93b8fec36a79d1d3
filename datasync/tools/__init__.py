"""Programs that join two stores, or a store and files."""
