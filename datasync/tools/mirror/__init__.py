"""A mirror: a prefix of one store that is kept equal to a prefix of another one."""

from datasync.tools.mirror.loops import MirrorLoopError
from datasync.tools.mirror.mirror import PrefixMirror
from datasync.tools.mirror.status import CopyProgress, MirrorState, MirrorStatus

__all__ = [
    # The mirror
    "PrefixMirror",
    "MirrorLoopError",
    # Its condition
    "CopyProgress",
    "MirrorState",
    "MirrorStatus",
]
