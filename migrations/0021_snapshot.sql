-- The saved fold of a study in a row of its own, packed: writing it keeps nobody from deciding, and it may be as long as the
-- history is. Those there were are made anew from the ledger, of which they are a cache.

CREATE TABLE snapshot (
    study_id bigint PRIMARY KEY REFERENCES study,
    seq      bigint NOT NULL,
    body     bytea NOT NULL
);
ALTER TABLE snapshot ALTER COLUMN body SET STORAGE EXTERNAL;  -- it is packed already
ALTER TABLE study DROP COLUMN snapshot, DROP COLUMN snapshot_seq;
