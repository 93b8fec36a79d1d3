-- Mode A: the tables and functions of one store. @ds@ stands for the schema, @channel@ for the channel.
-- The lock on the row of "head" is the order of the commits: it is taken before a revision is read and released when the
-- transaction has become visible, so whoever sees revision N sees all below it.
CREATE TABLE @ds@.head (
  one bool PRIMARY KEY DEFAULT true CHECK (one),
  version int NOT NULL,
  revision bigint NOT NULL,
  oldest bigint NOT NULL,
  bytes bigint NOT NULL,
  epoch uuid NOT NULL
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE TABLE @ds@.lease (id bigint PRIMARY KEY, deadline timestamptz NOT NULL);
CREATE TABLE @ds@.kv (
  key bytea PRIMARY KEY,
  value bytea NOT NULL,
  revision bigint NOT NULL,
  deadline timestamptz,
  lease bigint
);
CREATE INDEX ON @ds@.kv (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX ON @ds@.kv (lease) WHERE lease IS NOT NULL;
CREATE INDEX ON @ds@.lease (deadline);
-- "value" is NULL for a delete; "lease" is the lease whose end deleted the key.
CREATE TABLE @ds@.log (
  revision bigint,
  place int NOT NULL,
  key bytea,
  value bytea,
  lease bigint,
  PRIMARY KEY (revision, key)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX ON @ds@.log (lease) WHERE lease IS NOT NULL;
CREATE TABLE @ds@.commit (
  revision bigint PRIMARY KEY,
  token text NOT NULL UNIQUE,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  bytes bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);
INSERT INTO @ds@.head VALUES (true, 1, 1, 1, 0, gen_random_uuid());
INSERT INTO @ds@.commit (revision, token, bytes) VALUES (1, gen_random_uuid()::text, 0);
-- functions
-- Ends the commit "rev", which the log has already: its row, the head, the trimming, the wake-up.
CREATE OR REPLACE FUNCTION @ds@.finish(rev bigint, tok text, keep_age float8, keep_bytes bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  total bigint;
  cut bigint;
BEGIN
  UPDATE @ds@.head SET revision = rev, bytes = head.bytes + (
      SELECT sum(octet_length(l.key) + coalesce(octet_length(l.value), 0) + 64) FROM @ds@.log l WHERE l.revision = rev)
    RETURNING head.bytes INTO total;
  INSERT INTO @ds@.commit (revision, token, bytes) VALUES (rev, tok, total);
  IF rev % 64 = 0 THEN
    -- Not more than a thousand commits at once: after a quiet night nobody waits for the whole of it.
    SELECT max(c.revision) INTO cut FROM @ds@.commit c, @ds@.head h
      WHERE c.revision > 0 AND c.revision < rev AND c.revision <= h.oldest + 1024
      AND (c.at < clock_timestamp() - keep_age * interval '1 s' OR total - c.bytes > keep_bytes);
    IF cut IS NOT NULL THEN
      PERFORM @ds@.cut(cut);
    END IF;
  END IF;
  PERFORM pg_notify('@channel@', '');
END $$;

-- Forgets the log up to "upto"; the row of that commit stays, so that a position there can be checked.
CREATE OR REPLACE FUNCTION @ds@.cut(upto bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM @ds@.log l WHERE l.revision <= upto;
  DELETE FROM @ds@.commit c WHERE c.revision < upto AND (c.revision > 0 OR c.at < clock_timestamp() - interval '1 day');
  UPDATE @ds@.head SET oldest = upto;
END $$;

CREATE OR REPLACE FUNCTION @ds@.compact(upto bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  h record;
BEGIN
  SELECT * INTO h FROM @ds@.head FOR UPDATE;
  upto := least(coalesce(upto, h.revision), h.revision);
  IF upto > h.oldest THEN
    PERFORM @ds@.cut(upto);
    PERFORM pg_notify('@channel@', '');
  END IF;
  RETURN greatest(upto, h.oldest);
END $$;

-- Deletes what has expired, as a commit of its own. Any transaction may try; the first one does it.
CREATE OR REPLACE FUNCTION @ds@.reap(keep_age float8, keep_bytes bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  moment timestamptz := clock_timestamp();
  rev bigint;
  dead bigint[];
BEGIN
  IF NOT EXISTS (SELECT FROM @ds@.kv k WHERE k.deadline <= moment)
     AND NOT EXISTS (SELECT FROM @ds@.lease l WHERE l.deadline <= moment) THEN
    RETURN;
  END IF;
  SELECT h.revision + 1 INTO rev FROM @ds@.head h FOR UPDATE;
  -- First the leases, whose renewal may overtake this: only the keys of those that are gone go with them.
  WITH gone AS (DELETE FROM @ds@.lease l WHERE l.deadline <= moment RETURNING l.id)
    SELECT array_agg(gone.id) INTO dead FROM gone;
  WITH gone AS (DELETE FROM @ds@.kv k WHERE k.lease = ANY (dead) RETURNING k.key, k.lease)
    INSERT INTO @ds@.log (revision, place, key, lease) SELECT rev, 0, gone.key, gone.lease FROM gone;
  WITH gone AS (DELETE FROM @ds@.kv k WHERE k.deadline <= moment RETURNING k.key)
    INSERT INTO @ds@.log (revision, place, key) SELECT rev, 0, gone.key FROM gone;
  IF EXISTS (SELECT FROM @ds@.log l WHERE l.revision = rev) THEN
    PERFORM @ds@.finish(rev, gen_random_uuid()::text, keep_age, keep_bytes);
  END IF;
END $$;

-- One transaction of a store. "ops" are P (put), D (delete) and X (delete keys[i] <= key < vals[i]); the first "main" of
-- them are done if all conditions hold, else the others. In either no key is in P or D twice, and every P stands behind
-- all X that its key is in. A condition with a revision above 0 is on that alone. Outcome: written; nothing (it changed
-- nothing, and has no revision); lease (it does not exist).
CREATE OR REPLACE FUNCTION @ds@.commit(
  tok text, ckeys bytea[], cvals bytea[], crevs bigint[], ops text[], keys bytea[], vals bytea[], ttls float8[],
  owner bigint, owned bool[], main int, keep_age float8, keep_bytes bigint,
  OUT outcome text, OUT holds bool, OUT rev bigint, OUT deleted int
) LANGUAGE plpgsql AS $$
DECLARE
  count int;
  puts bytea[];
BEGIN
  PERFORM @ds@.reap(keep_age, keep_bytes);
  SELECT h.revision INTO rev FROM @ds@.head h FOR UPDATE;
  deleted := 0;
  IF owner IS NOT NULL AND NOT EXISTS (SELECT FROM @ds@.lease l WHERE l.id = owner) THEN
    outcome := 'lease';
    RETURN;
  END IF;
  holds := NOT EXISTS (
    SELECT FROM unnest(ckeys, cvals, crevs) AS c(key, value, revision) LEFT JOIN @ds@.kv k ON k.key = c.key
    WHERE CASE WHEN c.revision > 0 THEN k.revision IS DISTINCT FROM c.revision
               ELSE k.value IS DISTINCT FROM c.value END);
  IF main < cardinality(ops) THEN
    IF holds THEN
      ops := ops[:main];
      keys := keys[:main];
      vals := vals[:main];
      ttls := ttls[:main];
      owned := owned[:main];
    ELSE
      ops := ops[main + 1:];
      keys := keys[main + 1:];
      vals := vals[main + 1:];
      ttls := ttls[main + 1:];
      owned := owned[main + 1:];
    END IF;
  ELSIF NOT holds THEN
    outcome := 'nothing';
    RETURN;
  END IF;
  rev := rev + 1;
  IF 'D' = ANY (ops) THEN
    WITH o AS (SELECT * FROM unnest(ops, keys) WITH ORDINALITY AS o(op, key, place) WHERE o.op = 'D'),
      gone AS (DELETE FROM @ds@.kv k USING o WHERE k.key = o.key RETURNING o.place, o.key)
      INSERT INTO @ds@.log (revision, place, key) SELECT rev, gone.place, gone.key FROM gone;
    GET DIAGNOSTICS deleted = ROW_COUNT;
  END IF;
  IF 'X' = ANY (ops) THEN
    puts := ARRAY(SELECT o.key FROM unnest(ops, keys) AS o(op, key) WHERE o.op = 'P');
    FOR i IN 1..cardinality(ops) LOOP
      CONTINUE WHEN ops[i] <> 'X';
      IF vals[i] IS NULL THEN
        WITH gone AS (DELETE FROM @ds@.kv k WHERE k.key >= keys[i] AND NOT k.key = ANY (puts) RETURNING k.key)
          INSERT INTO @ds@.log (revision, place, key) SELECT rev, i, gone.key FROM gone;
      ELSE
        WITH gone AS (DELETE FROM @ds@.kv k WHERE k.key >= keys[i] AND k.key < vals[i] AND NOT k.key = ANY (puts)
                      RETURNING k.key)
          INSERT INTO @ds@.log (revision, place, key) SELECT rev, i, gone.key FROM gone;
      END IF;
      GET DIAGNOSTICS count = ROW_COUNT;
      deleted := deleted + count;
    END LOOP;
  END IF;
  count := deleted;
  IF 'P' = ANY (ops) THEN
    INSERT INTO @ds@.kv AS k (key, value, revision, deadline, lease)
      SELECT o.key, o.value, rev, clock_timestamp() + o.ttl * interval '1 s', CASE WHEN o.own THEN owner END
      FROM unnest(ops, keys, vals, ttls, owned) AS o(op, key, value, ttl, own) WHERE o.op = 'P'
      ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision,
        deadline = excluded.deadline, lease = excluded.lease;
    INSERT INTO @ds@.log (revision, place, key, value)
      SELECT rev, o.place, o.key, o.value
      FROM unnest(ops, keys, vals) WITH ORDINALITY AS o(op, key, value, place) WHERE o.op = 'P';
    count := count + 1;
  END IF;
  IF count = 0 THEN
    outcome := 'nothing';
    rev := rev - 1;
  ELSE
    outcome := 'written';
    PERFORM @ds@.finish(rev, tok, keep_age, keep_bytes);
  END IF;
END $$;

-- Settles whether the commit with a token happened: if it did not, it will not, since a token can be there once.
-- Such a token has a revision below 0.
CREATE OR REPLACE FUNCTION @ds@.settle(tok text, OUT happened bool, OUT oldest bigint) LANGUAGE plpgsql AS $$
DECLARE
  found bigint;
BEGIN
  SELECT h.oldest INTO oldest FROM @ds@.head h FOR UPDATE;
  SELECT c.revision INTO found FROM @ds@.commit c WHERE c.token = tok;
  happened := found > 0;
  IF found IS NULL THEN
    happened := false;
    INSERT INTO @ds@.commit (revision, token, bytes)
      SELECT least(min(c.revision), 0) - 1, tok, 0 FROM @ds@.commit c;
  END IF;
END $$;

-- Extends a lease. False: it does not exist, or the store does not know the last commit of its owner any more.
CREATE OR REPLACE FUNCTION @ds@.renew(owner bigint, seconds float8, last_rev bigint, last_tok text)
RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
  UPDATE @ds@.lease l SET deadline = clock_timestamp() + seconds * interval '1 s' WHERE l.id = owner;
  RETURN FOUND AND NOT @ds@.went_back(last_rev, last_tok);
END $$;

-- True if a commit that was acknowledged is not there: an older copy was restored. What was trimmed is not in doubt.
CREATE OR REPLACE FUNCTION @ds@.went_back(last_rev bigint, last_tok text) RETURNS bool LANGUAGE sql STABLE AS $$
  SELECT coalesce((SELECT last_rev > h.revision OR (last_rev >= h.oldest AND NOT EXISTS (
    SELECT FROM @ds@.commit c WHERE c.revision = last_rev AND c.token = last_tok)) FROM @ds@.head h), false)
$$;

-- Grants the lease anew and puts those keys again that its end deleted and that nobody wrote since; after a return to
-- an older copy, those that are not there. Returns the keys that are bound to the lease then.
CREATE OR REPLACE FUNCTION @ds@.restore(
  tok text, owner bigint, seconds float8, last_rev bigint, last_tok text, keys bytea[], vals bytea[],
  keep_age float8, keep_bytes bigint, OUT rev bigint, OUT bound bytea[], OUT restored int
) LANGUAGE plpgsql AS $$
DECLARE
  back bool;
BEGIN
  PERFORM @ds@.reap(keep_age, keep_bytes);
  SELECT h.revision + 1 INTO rev FROM @ds@.head h FOR UPDATE;
  back := @ds@.went_back(last_rev, last_tok);
  INSERT INTO @ds@.lease VALUES (owner, clock_timestamp() + seconds * interval '1 s')
    ON CONFLICT (id) DO UPDATE SET deadline = excluded.deadline;
  WITH lost AS (
    SELECT o.key, o.value, o.place FROM unnest(keys, vals) WITH ORDINALITY AS o(key, value, place)
    WHERE NOT EXISTS (SELECT FROM @ds@.kv k WHERE k.key = o.key)
      AND (back OR EXISTS (
        SELECT FROM @ds@.log l WHERE l.lease = owner AND l.key = o.key
        AND NOT EXISTS (SELECT FROM @ds@.log m WHERE m.key = l.key AND m.revision > l.revision)))
  ), put AS (
    INSERT INTO @ds@.kv (key, value, revision, lease) SELECT lost.key, lost.value, rev, owner FROM lost
  )
  INSERT INTO @ds@.log (revision, place, key, value) SELECT rev, lost.place, lost.key, lost.value FROM lost;
  GET DIAGNOSTICS restored = ROW_COUNT;
  IF restored > 0 THEN
    PERFORM @ds@.finish(rev, tok, keep_age, keep_bytes);
  ELSE
    rev := rev - 1;
  END IF;
  bound := ARRAY(SELECT k.key FROM @ds@.kv k WHERE k.lease = owner);
END $$;

-- Deletes a lease and its keys, at the end of its owner.
CREATE OR REPLACE FUNCTION @ds@.end_lease(tok text, owner bigint, keep_age float8, keep_bytes bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  rev bigint;
BEGIN
  SELECT h.revision + 1 INTO rev FROM @ds@.head h FOR UPDATE;
  DELETE FROM @ds@.lease l WHERE l.id = owner;
  WITH gone AS (DELETE FROM @ds@.kv k WHERE k.lease = owner RETURNING k.key)
    INSERT INTO @ds@.log (revision, place, key) SELECT rev, 0, gone.key FROM gone;
  IF FOUND THEN
    PERFORM @ds@.finish(rev, tok, keep_age, keep_bytes);
  END IF;
END $$;

-- Puts the key of a lock, held by a lease of its own that begins now. Returns its revision, 0 if the key is there.
CREATE OR REPLACE FUNCTION @ds@.lock_take(
  tok text, owner bigint, seconds float8, taken bytea, content bytea, keep_age float8, keep_bytes bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  rev bigint;
BEGIN
  PERFORM @ds@.reap(keep_age, keep_bytes);
  SELECT h.revision + 1 INTO rev FROM @ds@.head h FOR UPDATE;
  IF EXISTS (SELECT FROM @ds@.kv k WHERE k.key = taken) THEN
    RETURN 0;
  END IF;
  INSERT INTO @ds@.lease VALUES (owner, clock_timestamp() + seconds * interval '1 s');
  INSERT INTO @ds@.kv (key, value, revision, lease) VALUES (taken, content, rev, owner);
  INSERT INTO @ds@.log (revision, place, key, value) VALUES (rev, 1, taken, content);
  PERFORM @ds@.finish(rev, tok, keep_age, keep_bytes);
  RETURN rev;
END $$;

-- Renews the lease of a lock. False: it has ended, or its key is not as it was put at the revision "put".
CREATE OR REPLACE FUNCTION @ds@.lock_renew(owner bigint, seconds float8, taken bytea, put bigint)
RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
  UPDATE @ds@.lease l SET deadline = clock_timestamp() + seconds * interval '1 s'
    WHERE l.id = owner AND l.deadline > clock_timestamp()
    AND EXISTS (SELECT FROM @ds@.kv k WHERE k.key = taken AND k.revision = put AND k.lease = owner);
  RETURN FOUND;
END $$;

-- Ends the lease of a lock and deletes its key, whoever wrote it last. The put with the token "taking", if it is still on
-- its way, is refused afterwards.
CREATE OR REPLACE FUNCTION @ds@.lock_end(
  tok text, owner bigint, taken bytea, taking text, keep_age float8, keep_bytes bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  rev bigint;
BEGIN
  SELECT h.revision + 1 INTO rev FROM @ds@.head h FOR UPDATE;
  IF taking <> '' THEN
    PERFORM @ds@.settle(taking);
  END IF;
  DELETE FROM @ds@.lease l WHERE l.id = owner;
  WITH gone AS (DELETE FROM @ds@.kv k WHERE k.key = taken RETURNING k.key)
    INSERT INTO @ds@.log (revision, place, key) SELECT rev, 0, gone.key FROM gone;
  IF FOUND THEN
    PERFORM @ds@.finish(rev, tok, keep_age, keep_bytes);
  END IF;
END $$;
