-- What a project gets of the workers' slots; a project without a row has weight 1 and no bound.
CREATE TABLE project (
    name   text PRIMARY KEY,
    weight double precision NOT NULL DEFAULT 1 CHECK (weight > 0 AND weight < 'Infinity'),
    most   integer CHECK (most >= 0)  -- tasks that may run at once
);
