"""The position of a watched table: how far its log goes, and whether the log is all that happened."""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg import sql

from datasync.errors import CompactedError, StoreError
from datasync.keyval.positions import Position
from datasync.keyval.postgres.connection import BoundedConnection
from datasync.keyval.postgres.table.definition import ResolvedTable
from datasync.keyval.postgres.table.install import TRIGGER
from datasync.keyval.types import RewoundError

#: The time that identifies the commit of the revision {revision}, and the place of its first change.
TOKEN = (
    "(SELECT extract(epoch FROM t.at)::text || '-' || t.id FROM {ds}.table_log t"
    " WHERE t.tab = {tab} AND t.revision = {revision} ORDER BY t.id LIMIT 1)"
)


class TableState(NamedTuple):
    """The columns of the function ``table_state``, which has comments on them. All are None for an unknown table."""

    epoch: str | None
    known: str | None
    signature: str | None
    watched: bool | None
    tables: int | None
    keys: list[str] | None
    oldest: int
    current: int

    def check(self, keys: tuple[str, ...], name: str) -> None:
        """Raise ``StoreError`` unless the table *name* is there and watched by *keys*."""
        if self.epoch is None:
            raise StoreError(f"{name} is not watched: run what `datasync postgres watch-table` prints, or follow=diff")
        if not self.tables:
            raise StoreError(f"{name} not found")
        if not self.watched:
            raise StoreError(f"{name}: the trigger {TRIGGER} is not there, or disabled, on the table or a partition")
        if tuple(self.keys or ()) != keys:
            raise StoreError(f"{name} is watched by the key {','.join(self.keys or ())}, not {','.join(keys)}")

    def check_position(self, position: Position, token: str, name: str) -> None:
        """Raise if the log does not lead from *position*, whose commit has the *token* now, to the present."""
        if position.token:
            position.check(self.position(position.revision, token), name)
        if position.revision > self.current:
            raise RewoundError(f"{name} is at revision {self.current}, below {position.revision}")
        if position.revision < self.oldest:
            raise CompactedError(
                f"{name} has no history after revision {position.revision}: it was trimmed, or the table was truncated"
                " or altered",
                self.oldest,
            )

    @property
    def marked(self) -> bool:
        """False if the table was changed in another way than by its rows since that was noted last."""
        return self.signature == self.known

    def position(self, revision: int, token: str) -> Position:
        return Position(revision, token, self.epoch or "")


def read_state(
    connection: BoundedConnection, *, ds: sql.Identifier, table: ResolvedTable, keys: tuple[str, ...], name: str
) -> tuple[TableState, Position]:
    """Return the state of *table* that the snapshot of *connection* sees, and its position."""
    tab = sql.Literal(table.label)
    token = sql.SQL(TOKEN).format(ds=ds, tab=tab, revision=sql.SQL("s.current"))
    query = sql.SQL("SELECT s.*, {} FROM {}.table_state({}) s").format(token, ds, tab)
    row: Any = connection.execute(query).fetchone()
    state = TableState(*row[:-1])
    state.check(keys, name)
    return state, state.position(state.current, row[-1] or "")
