-- One row per applied migration.
CREATE TABLE schema_version (
    version    BIGINT NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    applied_us BIGINT NOT NULL
);

-- One row per process that claims nodes: enough to tell on its own host whether it still lives.
CREATE TABLE owner (
    id          TEXT    NOT NULL PRIMARY KEY,
    host        TEXT    NOT NULL,
    boot        TEXT    NOT NULL,
    pid         BIGINT NOT NULL,
    pid_started BIGINT NOT NULL,
    started_us  BIGINT NOT NULL,
    batch       BIGINT NOT NULL DEFAULT 0
);

-- One row per execution of a pipeline.
CREATE TABLE run (
    id         TEXT    NOT NULL PRIMARY KEY,
    pipeline   TEXT    NOT NULL,
    path       TEXT    NOT NULL,
    text       TEXT    NOT NULL,
    params     TEXT    NOT NULL,
    owner      TEXT    NOT NULL REFERENCES owner (id),
    state      TEXT    NOT NULL
               CHECK (state IN ('running', 'done', 'failed', 'cancelled', 'parked', 'abandoned')),
    started_us BIGINT NOT NULL,
    ended_us   BIGINT
);
CREATE INDEX run_by_pipeline ON run (pipeline, started_us);

-- One row per list of external files, shared by the keys that read the same files.
CREATE TABLE external_list (
    digest TEXT NOT NULL PRIMARY KEY,
    files  TEXT NOT NULL
);

-- One row per content address: what it is made of, and who holds or made its result.
CREATE TABLE node_key (
    key            TEXT    NOT NULL PRIMARY KEY,
    task           TEXT    NOT NULL,
    revision       BIGINT NOT NULL,
    params         TEXT    NOT NULL,
    inputs         TEXT    NOT NULL,
    external       TEXT,
    salt           TEXT    NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('missing', 'running', 'done')),
    epoch          BIGINT NOT NULL,
    owner          TEXT,
    lease_until_us BIGINT NOT NULL,
    created_us     BIGINT NOT NULL
);
CREATE INDEX node_key_running ON node_key (owner) WHERE state = 'running';

-- One row per node of a run.
CREATE TABLE run_node (
    run_id  TEXT    NOT NULL REFERENCES run (id),
    run_us  BIGINT NOT NULL,
    ordinal BIGINT NOT NULL,
    name    TEXT    NOT NULL,
    entry   TEXT    NOT NULL,
    task    TEXT    NOT NULL,
    key     TEXT,
    state   TEXT    NOT NULL
            CHECK (state IN ('waiting', 'running', 'cached', 'done', 'failed', 'skipped', 'cancelled', 'parked')),
    reason  TEXT,
    PRIMARY KEY (run_id, ordinal)
);
CREATE INDEX run_node_by_name ON run_node (name, run_us);

-- One row per try at a key; the epoch is the fencing token.
CREATE TABLE attempt (
    key               TEXT    NOT NULL,
    epoch             BIGINT NOT NULL,
    run_id            TEXT    NOT NULL REFERENCES run (id),
    node              TEXT    NOT NULL,
    owner             TEXT    NOT NULL,
    state             TEXT    NOT NULL
                      CHECK (state IN ('running', 'done', 'failed', 'cancelled', 'parked', 'lost')),
    started_us        BIGINT NOT NULL,
    ended_us          BIGINT,
    failure_kind      TEXT,
    failure_message   TEXT,
    failure_help      TEXT,
    metrics           TEXT,
    peak_memory_bytes BIGINT,
    progress_done     BIGINT,
    progress_total    BIGINT,
    progress_unit     TEXT,
    progress_at_us    BIGINT,
    PRIMARY KEY (key, epoch)
);
CREATE INDEX attempt_by_run ON attempt (run_id, node);
CREATE INDEX attempt_running ON attempt (owner) WHERE state = 'running';

-- One row per artifact and store that held it; the manifest lists its files.
CREATE TABLE artifact (
    digest     TEXT    NOT NULL,
    store      TEXT    NOT NULL,
    size_bytes BIGINT NOT NULL,
    n_files    BIGINT NOT NULL,
    manifest   TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('present', 'damaged', 'collected')),
    created_us BIGINT NOT NULL,
    PRIMARY KEY (digest, store)
);

-- One row per output port of a finished key.
CREATE TABLE output (
    key    TEXT NOT NULL,
    port   TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (key, port)
);
CREATE INDEX output_by_digest ON output (digest);

-- One row per point of a time series of an attempt.
CREATE TABLE metric (
    key   TEXT    NOT NULL,
    epoch BIGINT NOT NULL,
    name  TEXT    NOT NULL,
    step  BIGINT NOT NULL,
    value DOUBLE PRECISION,
    at_us BIGINT NOT NULL,
    PRIMARY KEY (key, name, step, epoch)
);

-- One row per log line of an attempt.
CREATE TABLE log (
    id    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key   TEXT    NOT NULL,
    epoch BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    level TEXT    NOT NULL CHECK (level IN ('info', 'warn')),
    text  TEXT    NOT NULL
);
CREATE INDEX log_by_key ON log (key, id);

-- One row per change of state, never updated: the history of everything above.
CREATE TABLE event (
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_us  BIGINT NOT NULL,
    run_id TEXT,
    node   TEXT,
    key    TEXT,
    epoch  BIGINT,
    kind   TEXT    NOT NULL,
    detail TEXT
);
CREATE INDEX event_by_run ON event (run_id, id);

-- One row per folder of external files: their digests by size, time and inode, so that unchanged
-- files are not read again. A cache; may be emptied at any time.
CREATE TABLE file_stat (
    base       TEXT    NOT NULL PRIMARY KEY,
    files      TEXT    NOT NULL,
    updated_us BIGINT NOT NULL
);
