"""The load of a cell: writers, watchers with their consumers, time limits, and what is measured around them."""
