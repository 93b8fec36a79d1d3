"""The sources of a cell: stores and senders, what goes wrong there, and the processes that they need."""
