-- Where in an object store an attempt may have written what it has not registered: said before it writes, forgotten when it registers.

CREATE TABLE upload (
    path    text PRIMARY KEY CHECK (path LIKE '%://%'),
    task_id bigint NOT NULL,
    epoch   integer NOT NULL,
    FOREIGN KEY (task_id, epoch) REFERENCES attempt (task_id, epoch)
);
CREATE INDEX upload_attempt ON upload (task_id, epoch);
-- How much its disk may hold by this worker's own word: of several that share one, the smallest counts.
ALTER TABLE worker ADD COLUMN quota_bytes bigint CHECK (quota_bytes > 0);
