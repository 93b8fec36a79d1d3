"""Tools that work on whole stores: what the command does, for programs.

Import them from their modules, such as ``datasync.tools.transfer``.
"""

__all__: list[str] = []
