-- One row per parked key that an operator decided on; a later decision replaces it.
CREATE TABLE ruling (
    key     TEXT    NOT NULL PRIMARY KEY,
    verdict TEXT    NOT NULL CHECK (verdict IN ('approved', 'rejected')),
    reason  TEXT    NOT NULL,
    by_whom TEXT    NOT NULL,
    at_us   BIGINT NOT NULL
);

-- One row per node, or run where the node is null, that an operator wants stopped; the process that
-- runs it obeys and notes when.
CREATE TABLE cancel_request (
    id        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id    TEXT    NOT NULL REFERENCES run (id),
    node      TEXT,
    by_whom   TEXT    NOT NULL,
    at_us     BIGINT NOT NULL,
    obeyed_us BIGINT
);
CREATE INDEX cancel_request_open ON cancel_request (run_id) WHERE obeyed_us IS NULL;

-- One row per name of a run; nothing that a tagged run refers to is garbage.
CREATE TABLE tag (
    name   TEXT    NOT NULL PRIMARY KEY,
    run_id TEXT    NOT NULL REFERENCES run (id),
    at_us  BIGINT NOT NULL
);

-- One row per artifact that is never garbage.
CREATE TABLE pin (
    digest  TEXT    NOT NULL PRIMARY KEY,
    about   TEXT    NOT NULL,
    by_whom TEXT    NOT NULL,
    at_us   BIGINT NOT NULL
);

-- Over name, entry, task and key of every node, once all are known: a run that finds the same again
-- copies the rows of the one before.
ALTER TABLE run ADD COLUMN nodes_digest TEXT;

-- What `\d+` shows. SQLite keeps the comments of its scripts in `sqlite_master` instead.
COMMENT ON TABLE schema_version IS 'one row per applied migration';
COMMENT ON TABLE owner IS 'one row per process that claims nodes';
COMMENT ON COLUMN owner.boot IS 'boot and process namespace: process ids mean nothing outside them';
COMMENT ON COLUMN owner.pid_started IS 'clock ticks from boot to the start of the process, which tell a reused id';
COMMENT ON COLUMN owner.batch IS 'the last batch it wrote, so that one sent again writes its log once';
COMMENT ON TABLE run IS 'one row per execution of a pipeline';
COMMENT ON COLUMN run.text IS 'the pipeline as it was, included files after it';
COMMENT ON COLUMN run.params IS 'pipeline params as they were, JSON';
COMMENT ON COLUMN run.started_us IS 'microseconds since 1970, as all columns that end so';
COMMENT ON TABLE external_list IS 'one row per list of files outside the store, shared by the keys that read them';
COMMENT ON TABLE node_key IS 'one row per content address: what it is made of, and who holds or made its result';
COMMENT ON COLUMN node_key.inputs IS 'digests of artifacts by port, JSON';
COMMENT ON COLUMN node_key.epoch IS 'the newest attempt; a result counts only with this number';
COMMENT ON COLUMN node_key.lease_until_us IS 'who holds it keeps prolonging this; 0 when nobody does';
COMMENT ON TABLE run_node IS 'one row per node of a run';
COMMENT ON COLUMN run_node.run_us IS 'when the run started, so that the last key of a name is found without a join';
COMMENT ON COLUMN run_node.entry IS 'its entry in the YAML; the nodes of a matrix share one';
COMMENT ON COLUMN run_node.reason IS 'why it ran, waited or was cut off, JSON; what `sbp why` prints';
COMMENT ON TABLE attempt IS 'one row per try at a key';
COMMENT ON COLUMN attempt.epoch IS 'the fencing token: grows by one with each try at the key';
COMMENT ON COLUMN attempt.metrics IS 'final figures by name, JSON';
COMMENT ON TABLE artifact IS 'one row per artifact and store that held it';
COMMENT ON COLUMN artifact.manifest IS 'its files with sizes and digests, JSON';
COMMENT ON TABLE output IS 'one row per output port of a finished key';
COMMENT ON TABLE metric IS 'one row per point of a time series of an attempt';
COMMENT ON TABLE log IS 'one row per log line of an attempt';
COMMENT ON TABLE event IS 'one row per change of state, never updated: the history of all tables';
COMMENT ON TABLE file_stat IS 'digests of external files by size, time and inode; a cache, may be emptied';
COMMENT ON TABLE ruling IS 'one row per parked key that an operator decided on';
COMMENT ON TABLE cancel_request IS 'what an operator wants stopped, and when that was obeyed';
COMMENT ON TABLE tag IS 'names of runs; nothing that a tagged run refers to is garbage';
COMMENT ON TABLE pin IS 'artifacts that are never garbage';
