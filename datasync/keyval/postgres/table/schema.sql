-- Following existing tables: what all watched tables of the database share. @ds@ stands for the schema.
CREATE SCHEMA IF NOT EXISTS @ds@;
CREATE SEQUENCE IF NOT EXISTS @ds@.table_revision;
-- When a commit was announced last, in milliseconds. A sequence, since all transactions see its present value.
CREATE SEQUENCE IF NOT EXISTS @ds@.table_announced;
CREATE TABLE IF NOT EXISTS @ds@.table_watch (
  tab text PRIMARY KEY,               -- schema.name of the table, as in the logs
  nsp text NOT NULL,                  -- the two apart
  rel text NOT NULL,
  keys text[] NOT NULL,               -- the columns of its key
  oldest bigint NOT NULL,             -- changes after this revision are in the log
  signature text,                     -- see table_state
  epoch uuid NOT NULL DEFAULT gen_random_uuid(),
  version int NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS @ds@.table_log (
  tab text,
  revision bigint,                    -- one per transaction, in the order of the commits
  id bigint GENERATED ALWAYS AS IDENTITY,
  key text NOT NULL,
  line jsonb,                         -- the row; NULL for a delete
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tab, revision, id)
) WITH (autovacuum_vacuum_scale_factor = 0.02);

-- The key of a row: its only column, or several joined by "/". In all but the last one, % and / become %25 and %2F.
-- The trigger calls it for every row: it has no settings of its own, which would take as long as all the rest.
CREATE OR REPLACE FUNCTION @ds@.table_key(line jsonb, keys text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
  last int := cardinality(keys);
  part text;
  found text;
BEGIN
  IF last = 1 THEN
    RETURN nullif(line ->> keys[1], '');
  END IF;
  FOR n IN 1..last LOOP
    part := line ->> keys[n];
    found := CASE WHEN n = last THEN concat(found || '/', part) ELSE
      concat(found || '/', replace(replace(part, '%', '%25'), '/', '%2F')) END;
    IF part IS NULL THEN
      RETURN NULL;
    END IF;
  END LOOP;
  RETURN found;
END $$;

-- The JSON of a row, whatever the settings of the session. To set and to restore all of them takes long: the trigger
-- calls it only in a session in which another one than the time zone differs.
CREATE OR REPLACE FUNCTION @ds@.table_line(line anyelement) RETURNS jsonb LANGUAGE plpgsql STABLE
SET timezone = 'UTC' SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres'
SET extra_float_digits = 1 SET bytea_output = 'hex' AS $$
BEGIN
  RETURN to_jsonb(line);
END $$;

-- Runs at COMMIT, once per changed row. On the first row of a transaction it takes the lock that is the order of the
-- commits, and a revision. The lock is held until the commit is visible, so whoever sees a revision sees all below it.
-- Arguments: the table as in table_watch; the channel, or nothing; the columns of the key.
CREATE OR REPLACE FUNCTION @ds@.table_note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  xid text := pg_current_xact_id()::text;
  mark text := current_setting('datasync.revision', true);
  zone text := current_setting('TimeZone');
  rev bigint;
  moment bigint;
  due bool;
  old_line jsonb;
  new_line jsonb;
  old_key text;
  new_key text;
BEGIN
  IF split_part(mark, ':', 1) = xid THEN
    rev := split_part(mark, ':', 2)::bigint;
  ELSE
    PERFORM pg_advisory_xact_lock(@lock@);
    rev := nextval('@ds@.table_revision');
    PERFORM set_config('datasync.revision', xid || ':' || rev, true);
    IF TG_ARGV[1] <> '' THEN
      -- All commits that notify wait for one lock of the server. A reader that was woken looks again soon by itself, so
      -- that of many commits in a row only some need to wake it.
      moment := extract(epoch FROM clock_timestamp()) * 1000;
      SELECT abs(moment - s.last_value) >= 10 INTO due FROM @ds@.table_announced s;
      IF due THEN
        PERFORM setval('@ds@.table_announced', moment);
        PERFORM pg_notify(TG_ARGV[1], '');
      END IF;
    END IF;
  END IF;
  -- The settings on which JSON depends, by values that give the same text. OLD is of no type in an INSERT.
  IF starts_with(current_setting('DateStyle'), 'ISO') AND current_setting('IntervalStyle') = 'postgres'
    AND current_setting('extra_float_digits')::int > 0 AND current_setting('bytea_output') = 'hex'
  THEN
    IF zone NOT IN ('UTC', 'Etc/UTC', 'GMT') THEN
      PERFORM set_config('TimeZone', 'UTC', true);  -- an error undoes it
    END IF;
    IF TG_OP <> 'INSERT' THEN
      old_line := to_jsonb(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
      new_line := to_jsonb(NEW);
    END IF;
    IF zone NOT IN ('UTC', 'Etc/UTC', 'GMT') THEN
      PERFORM set_config('TimeZone', zone, true);
    END IF;
  ELSE
    IF TG_OP <> 'INSERT' THEN
      old_line := @ds@.table_line(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
      new_line := @ds@.table_line(NEW);
    END IF;
  END IF;
  -- A key of one column without a call and an array for it.
  IF TG_NARGS = 3 THEN
    old_key := nullif(old_line ->> TG_ARGV[2], '');
    new_key := nullif(new_line ->> TG_ARGV[2], '');
  ELSE
    old_key := @ds@.table_key(old_line, TG_ARGV[2:]);
    new_key := @ds@.table_key(new_line, TG_ARGV[2:]);
  END IF;
  IF old_key IS NOT NULL AND old_key IS DISTINCT FROM new_key THEN
    INSERT INTO @ds@.table_log (tab, revision, key) VALUES (TG_ARGV[0], rev, old_key);
  END IF;
  IF new_key IS NOT NULL THEN
    INSERT INTO @ds@.table_log (tab, revision, key, line) VALUES (TG_ARGV[0], rev, new_key, new_line);
  END IF;
  RETURN NULL;
END $$;

-- The state of a watched table as the snapshot of the caller has it. The signature covers what changes rows, or their
-- JSON, without the trigger: columns, storage (a TRUNCATE and a rewrite give a table a new file), partitions, and the
-- trigger itself, which may have been disabled for a while. Catalogs are read by plain SQL: functions such as
-- pg_partition_tree() look at the present, not at the snapshot. Its xmin tells a row that was changed and changed back.
CREATE OR REPLACE FUNCTION @ds@.table_state(
  watched text, OUT epoch text, OUT known text, OUT signature text, OUT is_watched bool, OUT tables int, OUT keys text[],
  OUT oldest bigint, OUT current bigint
) LANGUAGE sql STABLE AS $$
  WITH RECURSIVE w AS (SELECT * FROM @ds@.table_watch WHERE tab = watched),
  tree (oid) AS (
    SELECT c.oid FROM w JOIN pg_catalog.pg_namespace n ON n.nspname = w.nsp
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel
    UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid
  ), trees AS (
    SELECT string_agg(concat_ws(':', c.oid, c.relfilenode, t.oid, t.xmin, t.tgenabled), ',' ORDER BY c.oid) AS text,
      bool_and(t.tgenabled IS NOT NULL AND t.tgenabled IN ('O', 'A')) AS is_watched, count(*)::int AS number
    FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid
      LEFT JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid AND t.tgname = 'zz_datasync'
  ), columns AS (
    SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod, a.xmin), ',' ORDER BY a.attnum) AS text
    FROM pg_catalog.pg_attribute a JOIN w ON true
      JOIN pg_catalog.pg_namespace n ON n.nspname = w.nsp
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  )
  SELECT w.epoch::text, w.signature, md5(trees.text || '|' || columns.text), trees.is_watched, trees.number, w.keys,
    w.oldest, greatest(w.oldest, (SELECT max(l.revision) FROM @ds@.table_log l WHERE l.tab = watched))
  FROM w, trees, columns
$$;

-- Notes a new signature. It is an event in the order of the commits, after which every reader lists the table again.
CREATE OR REPLACE FUNCTION @ds@.table_mark(watched text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  found text;
BEGIN
  PERFORM pg_advisory_xact_lock(@lock@);
  SELECT s.signature INTO found FROM @ds@.table_state(watched) s;
  UPDATE @ds@.table_watch w SET signature = found, oldest = nextval('@ds@.table_revision')
    WHERE w.tab = watched AND w.signature IS DISTINCT FROM found;
END $$;

-- Readers call it: no legacy program waits for it. Returns the number of changes that were forgotten.
CREATE OR REPLACE FUNCTION @ds@.table_trim(watched text, keep_age float8, keep_changes bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  cut bigint;
  count bigint := 0;
BEGIN
  PERFORM 1 FROM @ds@.table_watch w WHERE w.tab = watched FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN 0;
  END IF;
  SELECT max(o.revision) INTO cut FROM (
    SELECT l.revision, l.at, l.id FROM @ds@.table_log l WHERE l.tab = watched ORDER BY l.revision, l.id LIMIT 20000
  ) o WHERE o.at < clock_timestamp() - keep_age * interval '1 s'
    OR o.id <= (SELECT max(l.id) FROM @ds@.table_log l WHERE l.tab = watched AND l.revision = (
      SELECT max(m.revision) FROM @ds@.table_log m WHERE m.tab = watched)) - keep_changes;
  IF cut IS NOT NULL THEN
    -- The changes of that revision stay: a position there can be checked.
    DELETE FROM @ds@.table_log l WHERE l.tab = watched AND l.revision < cut;
    GET DIAGNOSTICS count = ROW_COUNT;
    UPDATE @ds@.table_watch w SET oldest = greatest(w.oldest, cut) WHERE w.tab = watched;
  END IF;
  RETURN count;
END $$;
REVOKE EXECUTE ON FUNCTION @ds@.table_trim(text, float8, bigint) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION @ds@.table_mark(text) FROM PUBLIC;
