-- What a controller needs to stay quick: it decodes a spec once a version, and finds what somebody holds.

ALTER TABLE study ADD COLUMN spec_version integer NOT NULL DEFAULT 1;  -- raised whenever the spec changes
CREATE INDEX lease_holder ON lease (worker_id);  -- never changed by a heartbeat, so that stays a HOT update
