"""I0: the record of the harness against the history of the source. With a wrong record the checkers prove nothing."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.checkers.reading import Violation
from tests.faults.history import Truth, TruthCommit


def check_record(truth: Truth, told: Sequence[TruthCommit] | None) -> Violation | None:
    """I0: the record equals the history that the source reports of its last epoch, as far back as it has it.

    Args:
      told: The result of ``Source.history``: oldest first; older commits were compacted.
    """
    if told is None:
        return None
    recorded = list(truth.epochs[-1].commits)
    if told:
        recorded = recorded[truth.epochs[-1].position(told[0].revision - 1) :]
    for place, (mine, theirs) in enumerate(zip(recorded, told, strict=False)):
        if mine.revision != theirs.revision or _effect(mine) != _effect(theirs):
            return _violation(f"recorded was {_said(mine)}, the source says {_said(theirs)}", recorded, told, place)
    common = min(len(recorded), len(told))
    if len(recorded) > common:
        return _violation(f"the source does not know of {_said(recorded[common])}", recorded, told, common)
    if len(told) > common:
        return _violation(f"nobody recorded {_said(told[common])}", recorded, told, common)
    return None


def _effect(commit: TruthCommit) -> dict[str, bytes | None]:
    """The operations without their order in the transaction, which I3 checks."""
    return dict(commit.ops)


def _said(commit: TruthCommit) -> str:
    text = repr(commit)
    return text if len(text) < 300 else text[:300] + "…"


def _violation(what: str, recorded: Sequence[TruthCommit], told: Sequence[TruthCommit], place: int) -> Violation:
    lines = []
    for at in range(max(0, place - 3), place + 2):
        for name, commits in (("recorded", recorded), ("told", told)):
            if at < len(commits):
                lines.append(f"{'->' if at == place else '  '} {at} {name}: {_said(commits[at])}")
    return Violation("I0", "the source", what, place, "\n".join(lines))
