-- One row per parked key that an operator decided on; a later decision replaces it.
CREATE TABLE ruling (
    key     TEXT    NOT NULL PRIMARY KEY,
    verdict TEXT    NOT NULL CHECK (verdict IN ('approved', 'rejected')),
    reason  TEXT    NOT NULL,
    by_whom TEXT    NOT NULL,
    at_us   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per node, or run where the node is null, that an operator wants stopped; the process that
-- runs it obeys and notes when.
CREATE TABLE cancel_request (
    id        INTEGER PRIMARY KEY,
    run_id    TEXT    NOT NULL REFERENCES run (id),
    node      TEXT,
    by_whom   TEXT    NOT NULL,
    at_us     INTEGER NOT NULL,
    obeyed_us INTEGER
) STRICT;
CREATE INDEX cancel_request_open ON cancel_request (run_id) WHERE obeyed_us IS NULL;

-- One row per name of a run; nothing that a tagged run refers to is garbage.
CREATE TABLE tag (
    name   TEXT    NOT NULL PRIMARY KEY,
    run_id TEXT    NOT NULL REFERENCES run (id),
    at_us  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per artifact that is never garbage.
CREATE TABLE pin (
    digest  TEXT    NOT NULL PRIMARY KEY,
    about   TEXT    NOT NULL,
    by_whom TEXT    NOT NULL,
    at_us   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Over name, entry, task and key of every node, once all are known: a run that finds the same again
-- copies the rows of the one before.
ALTER TABLE run ADD COLUMN nodes_digest TEXT;
