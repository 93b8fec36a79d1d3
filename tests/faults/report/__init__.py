"""The results of many cells as tables, for a terminal and for the documentation."""
