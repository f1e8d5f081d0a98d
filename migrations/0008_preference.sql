-- What a study prefers is a view of what its runs measured: it may change, and every version stays.

CREATE TABLE preference (
    study_id     bigint NOT NULL REFERENCES study,
    version      integer NOT NULL CHECK (version >= 1),
    desirability jsonb NOT NULL,
    seq          bigint NOT NULL,           -- the last event decided before it; 0 for the one the study began with
    at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (study_id, version)
);
