-- What computed: the program with its commit, and the machine. Null for owners of older programs.
ALTER TABLE owner ADD COLUMN build TEXT;
ALTER TABLE owner ADD COLUMN machine TEXT;
