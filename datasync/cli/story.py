"""The lines of the demo: two processes write them to one terminal, each under its own name."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datasync.examples.agent import Difference, Report, fields_of, told

#: Name in front of a line, and its colour.
STYLES = {"writer": "cyan", "agent": "magenta"}
INDENT = 9


class Story:
    """What one of the two processes says. Each call is one write, so that lines of both never mix."""

    def __init__(self, console: Console, role: str) -> None:
        self._console = console
        self._role = role

    def title(self, text: str) -> None:
        """A new part of the story."""
        self._console.print(Text.assemble("\n", (text, "bold")), soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """One line under the role's name."""
        name = f"{self._role:>{INDENT - 2}}  "
        self._console.print(Text.assemble((name, STYLES[self._role]), (text, style)), soft_wrap=True)

    def report(self, report: Report) -> None:
        """How the agent handled an event."""
        if report.event == "CHANGE":
            self.say(f"CHANGE at revision {report.revision}", "bold")
            for difference in report.differences:
                self._line(_sign(difference), f"{difference.key}  {told(difference)}")
        else:
            same = f", {report.same} as the dataplane has them" if report.same else ""
            self.say(f"{report.event} at revision {report.revision}: {len(report.differences)} to apply{same}", "bold")
            if report.differences:
                self._table(report)
        for key, problem in report.refused.items():
            self._line("!", f"{key}  refused: {problem}", "red")
        self.say("done(error)" if report.refused else "done()", "red" if report.refused else "green")

    def _line(self, sign: str, text: str, style: str = "") -> None:
        self._console.print(Text.assemble(" " * INDENT, (f"{sign} {text}", style)), soft_wrap=True)

    def _table(self, report: Report) -> None:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
        for heading in ("", "key", "the dataplane had", "the store has"):
            table.add_column(heading, overflow="fold")  # on a narrow terminal nothing is cut off
        for difference in report.differences:
            table.add_row(
                _sign(difference), difference.key, _shown(difference, old=True), _shown(difference, old=False)
            )
        self._console.print(Padding(table, (0, 0, 0, INDENT)))


def _sign(difference: Difference) -> str:
    return "+" if difference.old is None else "-" if difference.new is None else "~"


def _shown(difference: Difference, *, old: bool) -> Text:
    """One side, shortened to what differs where there are two."""
    both = difference.old is not None and difference.new is not None
    mine = fields_of(difference.old if old else difference.new)
    other = fields_of(difference.new if old else difference.old)
    lines = [f"{name} {value}" for name, value in mine.items() if not both or other.get(name) != value]
    return Text("\n".join(lines) if lines else "nothing", "" if lines else "dim")
