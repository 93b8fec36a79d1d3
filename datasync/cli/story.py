"""The output of the demo: two processes write to one terminal, each under its own name."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datasync.examples.agent import AGAIN, CHANGE, Difference, Report, describe_fields, fields_of

#: Name of a process, and its colour.
STYLES = {"writer": "cyan", "agent": "magenta"}
INDENT = 9


class Story:
    """The output of one process. Each call is one write, so the lines of the two processes never mix."""

    def __init__(self, console: Console, role: str) -> None:
        self._console = console
        self._role = role

    def title(self, text: str) -> None:
        """Print the title of the next part."""
        self._console.print(Text.assemble("\n", (text, "bold")), soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Print one line with the name of the process."""
        name = f"{self._role:>{INDENT - 2}}  "
        self._console.print(Text.assemble((name, STYLES[self._role]), (text, style)), soft_wrap=True)

    def report(self, report: Report) -> None:
        """Print the handling of an event."""
        if report.event in (CHANGE, AGAIN):
            self.say(f"{report.event} at revision {report.revision}", "bold")
            for difference in report.differences:
                self._line(difference.sign, f"{difference.key}  {describe_fields(difference)}")
        else:
            same = f", {report.same} unchanged" if report.same else ""
            self.say(f"{report.event} at revision {report.revision}: {len(report.differences)} to apply{same}", "bold")
            if report.differences:
                self._table(report)
        for key, problem in report.rejected.items():
            self._line("!", f"{key}  rejected: {problem}", "red")
        self.say("done(Rejected(...))" if report.rejected else "done()", "red" if report.rejected else "green")

    def _line(self, sign: str, text: str, style: str = "") -> None:
        self._console.print(Text.assemble(" " * INDENT, (f"{sign} {text}", style)), soft_wrap=True)

    def _table(self, report: Report) -> None:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
        for heading in ("", "key", "in the dataplane", "in the store"):
            table.add_column(heading, overflow="fold")  # a narrow terminal cuts nothing off
        for difference in report.differences:
            table.add_row(difference.sign, difference.key, _shown(difference, old=True), _shown(difference, old=False))
        self._console.print(Padding(table, (0, 0, 0, INDENT)))


def _shown(difference: Difference, *, old: bool) -> Text:
    """Return one side; if there are two, only its fields that differ."""
    both = difference.old is not None and difference.new is not None
    mine = fields_of(difference.old if old else difference.new)
    other = fields_of(difference.new if old else difference.old)
    lines = [f"{name} {value}" for name, value in mine.items() if not both or other.get(name) != value]
    return Text("\n".join(lines) if lines else "nothing", "" if lines else "dim")
