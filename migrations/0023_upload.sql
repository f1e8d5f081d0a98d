-- Where in an object store an attempt may have written what it has not registered: said before it writes, forgotten when it registers.

CREATE TABLE upload (
    path    text PRIMARY KEY CHECK (path LIKE '%://%'),
    task_id bigint NOT NULL,
    epoch   integer NOT NULL,
    FOREIGN KEY (task_id, epoch) REFERENCES attempt (task_id, epoch) ON DELETE CASCADE
);
CREATE INDEX upload_attempt ON upload (task_id, epoch);
