-- Thousands of active studies: a pass of leases looks at those alone that may have something to run, of each kind the first.

ALTER TABLE study
    ADD COLUMN gpus integer GENERATED ALWAYS AS (coalesce((spec #>> '{run,gpus}')::integer, 0)) STORED,
    ADD COLUMN nodes integer GENERATED ALWAYS AS (coalesce((spec #>> '{run,nodes}')::integer, 1)) STORED,
    ADD COLUMN weight double precision GENERATED ALWAYS AS (coalesce((spec ->> 'weight')::double precision, 1)) STORED,
    ADD COLUMN kind bigint GENERATED ALWAYS AS (hashtextextended(  -- what decides who may run it, as a number that compares fast
        project || ' ' || trainable || ' ' || coalesce(spec #>> '{run,gpus}', '') || ' ' || coalesce(spec #>> '{run,nodes}', ''), 0)) STORED,
    ADD COLUMN startable integer NOT NULL DEFAULT 1,  -- how many tasks an ask would begin, limits aside, as the last decision left it
    ADD COLUMN hungry boolean GENERATED ALWAYS AS (startable > 0) STORED;  -- it seldom changes, so that a decision stays a HOT update
CREATE INDEX study_hungry ON study (kind, weight DESC, id) WHERE state = 'active' AND hungry AND trainable <> '';

-- The study of a lease never changes: who counts leases by study does not look at their tasks.
ALTER TABLE lease ADD COLUMN study_id bigint;
UPDATE lease SET study_id = task.study_id FROM task WHERE task.id = lease.task_id;
ALTER TABLE lease ALTER COLUMN study_id SET NOT NULL;
