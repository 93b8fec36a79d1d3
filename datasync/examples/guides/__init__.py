"""Programs of the guides."""
