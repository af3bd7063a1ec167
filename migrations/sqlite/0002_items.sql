-- One row per item and store: a part of a node's work with a lease and a result of its own.
CREATE TABLE item (
    key            TEXT    NOT NULL,
    store          TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('missing', 'running', 'done', 'collected')),
    epoch          INTEGER NOT NULL,
    owner          TEXT,
    holder         TEXT,
    lease_until_us INTEGER NOT NULL,
    n_failed       INTEGER NOT NULL,
    failure        TEXT,
    digest         TEXT,
    size_bytes     INTEGER,
    created_us     INTEGER NOT NULL,
    started_us     INTEGER,
    ended_us       INTEGER,
    PRIMARY KEY (key, store)
) STRICT, WITHOUT ROWID;
CREATE INDEX item_running ON item (owner) WHERE state = 'running';

-- One row per place in the item list of a stage of a node's work.
CREATE TABLE node_item (
    node_key TEXT    NOT NULL,
    stage    TEXT    NOT NULL,
    ordinal  INTEGER NOT NULL,
    item     TEXT    NOT NULL,
    PRIMARY KEY (node_key, stage, ordinal)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_item_by_item ON node_item (item);
