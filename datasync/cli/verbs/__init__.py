"""The subcommands: one module for each group of them, imported when one is used (``datasync.cli.group``)."""
