-- How many times over a configuration runs again with another seed: 0 has the study's own.
ALTER TABLE trial ADD COLUMN repeat integer NOT NULL DEFAULT 0 CHECK (repeat >= 0);
