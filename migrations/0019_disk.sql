-- Folders of checkpoints that have a quota, as workers measured them; several workers may share one, on several hosts too.

CREATE TABLE disk (
    id          text PRIMARY KEY,           -- the project its workers are held to, and what is written in the folder itself
    project     text NOT NULL,
    host        text NOT NULL,              -- of who measured it last
    root        text NOT NULL CHECK (root <> ''),
    quota_bytes bigint NOT NULL CHECK (quota_bytes > 0),
    used_bytes  bigint NOT NULL CHECK (used_bytes >= 0),
    measured_at timestamptz NOT NULL,
    weighed_at  timestamptz NOT NULL DEFAULT '-infinity',  -- the measurement that was acted on last
    is_full     boolean NOT NULL DEFAULT false             -- over the quota, and nothing more may go
);
ALTER TABLE worker ADD COLUMN disk_id text REFERENCES disk;
ALTER TABLE checkpoint ADD COLUMN for_room boolean NOT NULL DEFAULT false CHECK (NOT for_room OR dropped_at IS NOT NULL);
