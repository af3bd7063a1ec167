-- One row per item and store: a part of a node's work with a lease and a result of its own.
CREATE TABLE item (
    key            TEXT    NOT NULL,
    store          TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('missing', 'running', 'done', 'collected')),
    epoch          BIGINT NOT NULL,
    owner          TEXT,
    holder         TEXT,
    lease_until_us BIGINT NOT NULL,
    n_failed       BIGINT NOT NULL,
    failure        TEXT,
    digest         TEXT,
    size_bytes     BIGINT,
    created_us     BIGINT NOT NULL,
    started_us     BIGINT,
    ended_us       BIGINT,
    PRIMARY KEY (key, store)
);
CREATE INDEX item_running ON item (owner) WHERE state = 'running';

-- One row per place in the item list of a stage of a node's work.
CREATE TABLE node_item (
    node_key TEXT    NOT NULL,
    stage    TEXT    NOT NULL,
    ordinal  BIGINT NOT NULL,
    item     TEXT    NOT NULL,
    PRIMARY KEY (node_key, stage, ordinal)
);
CREATE INDEX node_item_by_item ON node_item (item);
