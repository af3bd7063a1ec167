-- What computed: the program with its commit, and the machine. Null for owners of older programs.
ALTER TABLE owner ADD COLUMN build TEXT;
ALTER TABLE owner ADD COLUMN machine TEXT;

COMMENT ON COLUMN owner.build IS 'the program: version and commit';
COMMENT ON COLUMN owner.machine IS 'its processor, threads and memory';
