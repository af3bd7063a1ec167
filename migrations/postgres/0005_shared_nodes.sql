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

COMMENT ON TABLE own_node IS 'one row per node of a run that shares nothing; `run_node` has those of every run';
COMMENT ON VIEW run_node IS 'one row per node of every run';
COMMENT ON COLUMN run.nodes_of IS 'the run whose text and nodes are this run''s, all cached; its own id when it shares nothing';
COMMENT ON COLUMN run.text IS 'the pipeline as it was, included files after it; empty where nodes_of names another run';
COMMENT ON COLUMN run_node.run_us IS 'when the run started';
COMMENT ON COLUMN run_node.entry IS 'its entry in the YAML; the nodes of a matrix share one';
COMMENT ON COLUMN run_node.state IS 'cached for every node of a run that shares another''s';
COMMENT ON COLUMN run_node.reason IS 'why it ran, waited or was cut off, JSON; what `sbp why` prints';
