"""The SQL by which a table is watched, and its inverse. A DBA reads and runs it; nothing here runs it by itself."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib.resources import files

from psycopg import sql

from datasync.errors import InvalidArgumentError

#: The trigger's name: triggers of one event run in the order of their names, and this one comes last.
TRIGGER = "zz_datasync"


def watch_sql(
    table: tuple[str, str], keys: Sequence[str], *, schema: str = "ds", notify: bool = True, roles: Sequence[str] = ()
) -> str:
    """Return the SQL that makes *table*, a schema and a name, followable by *keys*, for readers with one of *roles*."""
    if not keys:
        raise InvalidArgumentError("a watched table needs the columns of its key")
    shared = (files(__package__) / "schema.sql").read_text(encoding="utf-8")
    name, label = quoted_table(table), ".".join(table)
    arguments = ", ".join(_literal(one) for one in (label, channel(schema) if notify else "", *keys))
    grants = "".join(
        f"GRANT USAGE ON SCHEMA @ds@ TO {_quoted(role)};\n"
        f"GRANT SELECT ON @ds@.table_watch, @ds@.table_log, {name} TO {_quoted(role)};\n"
        f"GRANT EXECUTE ON FUNCTION @ds@.table_trim(text, float8, bigint), @ds@.table_mark(text) TO {_quoted(role)};\n"
        for role in roles
    )
    own = f"""
-- The table {name}.
INSERT INTO @ds@.table_watch (tab, nsp, rel, keys, oldest)
  VALUES ({", ".join(map(_literal, (label, *table)))}, ARRAY[{", ".join(map(_literal, keys))}],
    nextval('@ds@.table_revision'))
  ON CONFLICT (tab) DO UPDATE SET keys = excluded.keys, oldest = excluded.oldest, epoch = excluded.epoch;
DROP TRIGGER IF EXISTS {TRIGGER} ON {name};
CREATE CONSTRAINT TRIGGER {TRIGGER} AFTER INSERT OR UPDATE OR DELETE ON {name}
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION @ds@.table_note({arguments});
-- Also for what logical replication applies, and under session_replication_role = replica.
ALTER TABLE {name} ENABLE ALWAYS TRIGGER {TRIGGER};
SELECT @ds@.table_mark({_literal(label)});
"""
    return _filled(f"BEGIN;\n{shared}{own}{grants}COMMIT;\n", schema)


def unwatch_sql(table: tuple[str, str], *, schema: str = "ds") -> str:
    """Return the inverse of ``watch_sql``. What the tables share goes with the last one."""
    name, label = quoted_table(table), _literal(".".join(table))
    return _filled(
        f"""BEGIN;
DROP TRIGGER IF EXISTS {TRIGGER} ON {name};
DELETE FROM @ds@.table_log WHERE tab = {label};
DELETE FROM @ds@.table_watch WHERE tab = {label};
DO $do$ BEGIN
  IF NOT EXISTS (SELECT FROM @ds@.table_watch) THEN
    DROP FUNCTION @ds@.table_note();
    -- Not there where an earlier version made the rest.
    DROP FUNCTION IF EXISTS @ds@.table_line(anyelement);
    DROP FUNCTION @ds@.table_trim(text, float8, bigint);
    DROP FUNCTION @ds@.table_mark(text);
    DROP FUNCTION @ds@.table_state(text);
    DROP FUNCTION @ds@.table_key(jsonb, text[]);
    DROP TABLE @ds@.table_log, @ds@.table_watch;
    DROP SEQUENCE @ds@.table_revision, @ds@.table_announced;
    -- The schema stays if it has anything else, such as a store.
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = {_literal("@ds@")}::regnamespace) THEN
      DROP SCHEMA @ds@;
    END IF;
  END IF;
END $do$;
COMMIT;
""",
        schema,
    )


def channel(schema: str) -> str:
    """Return the channel on which commits to watched tables are announced."""
    return f"datasync_tables_{schema}"


def quoted_table(table: tuple[str, str]) -> str:
    return ".".join(map(_quoted, table))


def _filled(text: str, schema: str) -> str:
    # One lock for all tables of the schema: with one each, two transactions could take them in different orders.
    lock = f"{zlib.crc32(b'datasync') & 0x7FFFFFFF}, {zlib.crc32(schema.encode()) & 0x7FFFFFFF}"
    ident = _quoted(schema)
    return text.replace("@lock@", lock).replace("'@ds@", "'" + ident.replace("'", "''")).replace("@ds@", ident)


def _quoted(name: str) -> str:
    """Return *name*, quoted where it is not a plain word."""
    plain = name.isascii() and name.replace("_", "a").isalnum() and name == name.lower() and not name[0].isdigit()
    return name if plain else sql.Identifier(name).as_string(None)


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)
