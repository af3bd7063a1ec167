-- A run that finds every node cached, by the same text as the run before it, shares what that run
-- says of its text and nodes instead of writing it again: a run with nothing to do writes a few rows,
-- however large the pipeline.
ALTER TABLE run ADD COLUMN nodes_of TEXT;
UPDATE run SET nodes_of = id;

-- One row per node of a run that shares nothing.
ALTER TABLE run_node RENAME TO own_node;

-- One row per node of every run.
CREATE VIEW run_node AS
SELECT r.id AS run_id, r.started_us AS run_us, n.ordinal, n.name, n.entry, n.task, n.key,
       CASE WHEN r.nodes_of = r.id THEN n.state ELSE 'cached' END AS state,
       CASE WHEN r.nodes_of = r.id THEN n.reason END AS reason
  FROM run AS r JOIN own_node AS n ON n.run_id = r.nodes_of;
