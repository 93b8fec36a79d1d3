"""How pictures of figures look: readable on white and on black, since each has a ground of its own."""

from __future__ import annotations

from typing import Any

GROUND, INK, FAINT, RED = "#f7f7f4", "#22303c", "#c9ced3", "#c0392b"


def dress(axis: Any) -> None:
    """Colours, small letters and a faint grid, on one set of axes."""
    axis.set_facecolor(GROUND)
    axis.tick_params(colors=INK, labelsize=8)
    axis.yaxis.label.set_color(INK)
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_fontsize(9)
    axis.grid(True, color=FAINT, linewidth=0.5)
    for spine in axis.spines.values():
        spine.set_color(FAINT)
