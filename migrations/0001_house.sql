-- Every trial, curve and decision. Each rule of the scheduler is a constraint here as well, so that a wrong
-- controller fails loudly instead of corrupting. All times are the database's own.

CREATE TYPE study_state AS ENUM ('active', 'paused', 'idle', 'stopped');
CREATE TYPE campaign_state AS ENUM ('searching', 'confirming', 'done', 'stopped');
CREATE TYPE task_state AS ENUM ('ready', 'leased', 'cancelling', 'done', 'failed', 'cancelled');
CREATE TYPE result_status AS ENUM ('ok', 'diverged', 'failed', 'cancelled');
CREATE TYPE attempt_outcome AS ENUM ('ok', 'diverged', 'failed', 'released', 'expired', 'cancelled');

CREATE TABLE campaign (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project         text NOT NULL,
    name            text NOT NULL,
    spec            jsonb NOT NULL,
    state           campaign_state NOT NULL DEFAULT 'searching',
    max_tokens      bigint NOT NULL CHECK (max_tokens > 0),
    deepened        integer NOT NULL DEFAULT 0,
    deepened_tokens double precision NOT NULL DEFAULT 0,  -- what the deepenings add in all, as planned
    restart_tokens  double precision NOT NULL DEFAULT 0,  -- what starting again at each new maximum would cost
    confirm         boolean NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project, name)
);

CREATE TABLE study (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project     text NOT NULL,
    name        text NOT NULL,
    campaign_id bigint REFERENCES campaign,
    size        text,                       -- the campaign's size this study searches; 'target' is the cell not swept
    n_params    double precision,
    spec        jsonb NOT NULL,
    trainable   text NOT NULL,              -- 'function:module:name', 'command:program …', 'gpt', or '' for the SDK
    state       study_state NOT NULL DEFAULT 'active',
    max_budget  bigint NOT NULL,
    next_seq    bigint NOT NULL DEFAULT 1,
    cap         double precision,           -- limits.total_budget
    reserved    double precision NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    spent       double precision NOT NULL DEFAULT 0 CHECK (spent >= 0),
    snapshot    jsonb,                      -- a cache of the folded search at snapshot_seq; never the truth
    snapshot_seq bigint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project, name),
    CHECK (cap IS NULL OR reserved + spent <= cap)
);
CREATE INDEX study_live ON study (id) WHERE state IN ('active', 'idle');

CREATE TABLE event (
    study_id  bigint NOT NULL REFERENCES study,
    seq       bigint NOT NULL,
    kind      text NOT NULL,
    body      jsonb NOT NULL,
    decisions jsonb NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (study_id, seq)
);

CREATE TABLE trial (
    study_id bigint NOT NULL REFERENCES study,
    no       integer NOT NULL,
    bracket  integer NOT NULL,              -- -1: added by hand or by the campaign, outside brackets and quotas
    index    integer NOT NULL,
    params   jsonb NOT NULL,
    source   text NOT NULL,
    PRIMARY KEY (study_id, no),
    UNIQUE (study_id, bracket, index)
);

CREATE TABLE task (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    study_id       bigint NOT NULL,
    trial_no       integer NOT NULL,
    level          integer NOT NULL CHECK (level >= 0),
    budget_from    bigint NOT NULL CHECK (budget_from >= 0),
    decay_from     bigint NOT NULL,
    budget_to      bigint NOT NULL,
    state          task_state NOT NULL DEFAULT 'ready',
    epoch          integer NOT NULL DEFAULT 0,
    failures       integer NOT NULL DEFAULT 0,
    infra_failures integer NOT NULL DEFAULT 0,
    not_before     timestamptz NOT NULL DEFAULT now(),
    created_at     timestamptz NOT NULL DEFAULT now(),
    ended_at       timestamptz,
    UNIQUE (study_id, trial_no, level),
    FOREIGN KEY (study_id, trial_no) REFERENCES trial (study_id, no),
    CHECK (budget_from < budget_to AND decay_from <= budget_to),
    CHECK ((state IN ('done', 'failed', 'cancelled')) = (ended_at IS NOT NULL))
);
CREATE INDEX task_ready ON task (study_id, level DESC, id) WHERE state = 'ready';
ALTER TABLE task SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

-- The moves of isoloss.domain.task.NEXT; an epoch only ever grows by one, and only with a lease.
CREATE FUNCTION check_task_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state IS DISTINCT FROM NEW.state AND NOT (OLD.state::text || '>' || NEW.state::text = ANY (ARRAY[
        'ready>leased', 'ready>cancelled', 'leased>ready', 'leased>done', 'leased>failed', 'leased>cancelling',
        'cancelling>cancelled'])) THEN
        RAISE EXCEPTION 'a task cannot go from % to %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.epoch <> OLD.epoch + (CASE WHEN OLD.state = 'ready' AND NEW.state = 'leased' THEN 1 ELSE 0 END) THEN
        RAISE EXCEPTION 'epoch % cannot follow % on a move from % to %', NEW.epoch, OLD.epoch, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER task_moves BEFORE UPDATE ON task FOR EACH ROW EXECUTE FUNCTION check_task_move();

CREATE TABLE worker (
    id          text PRIMARY KEY,
    incarnation text NOT NULL,
    host        text NOT NULL,
    slots       integer NOT NULL CHECK (slots > 0),
    device      text NOT NULL,
    allowed     jsonb NOT NULL,
    draining    boolean NOT NULL DEFAULT false,
    seen_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE attempt (
    task_id    bigint NOT NULL REFERENCES task,
    epoch      integer NOT NULL,
    worker_id  text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz,
    outcome    attempt_outcome,
    message    text NOT NULL DEFAULT '',
    PRIMARY KEY (task_id, epoch),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

-- Only live leases. No index on expires_at: heartbeats stay HOT updates and the reaper's scan is cheap.
CREATE TABLE lease (
    task_id     bigint PRIMARY KEY REFERENCES task,
    epoch       integer NOT NULL,
    worker_id   text NOT NULL,
    incarnation text NOT NULL,
    secret_hash bytea NOT NULL,
    expires_at  timestamptz NOT NULL,
    FOREIGN KEY (task_id, epoch) REFERENCES attempt (task_id, epoch)
) WITH (fillfactor = 50);

CREATE TABLE result (
    task_id     bigint PRIMARY KEY REFERENCES task,
    study_id    bigint NOT NULL REFERENCES study,
    epoch       integer,                    -- NULL: ended without an attempt (cancelled while it waited)
    status      result_status NOT NULL,
    "values"    jsonb NOT NULL,
    step        bigint,                     -- where it diverged
    score       double precision,           -- set with decided_seq; what a rung ranks
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    decided_seq bigint,
    FOREIGN KEY (task_id, epoch) REFERENCES attempt (task_id, epoch),
    FOREIGN KEY (study_id, decided_seq) REFERENCES event (study_id, seq),
    CHECK (score IS NULL OR (status = 'ok' AND score > '-Infinity' AND score < 'Infinity'))
);
CREATE INDEX result_undecided ON result (study_id, received_at, task_id) WHERE decided_seq IS NULL;
CREATE INDEX result_study ON result (study_id);

-- Curves, as chunks: one row holds the points of one report for one metric.
CREATE TABLE metric_chunk (
    task_id  bigint NOT NULL,
    epoch    integer NOT NULL,
    metric   text NOT NULL,
    step0    bigint NOT NULL,
    steps    bigint[] NOT NULL,
    "values" double precision[] NOT NULL,
    PRIMARY KEY (task_id, epoch, metric, step0),
    FOREIGN KEY (task_id, epoch) REFERENCES attempt (task_id, epoch),
    CHECK (cardinality(steps) = cardinality("values"))
);

CREATE TABLE checkpoint (
    task_id  bigint NOT NULL,
    epoch    integer NOT NULL,
    step     bigint NOT NULL,
    path     text NOT NULL,
    manifest jsonb NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (task_id, epoch, step),
    FOREIGN KEY (task_id, epoch) REFERENCES attempt (task_id, epoch)
);

CREATE TABLE dedup (
    method       text NOT NULL,
    idem_key     text NOT NULL,
    request_hash bytea NOT NULL,
    reply        bytea NOT NULL,
    at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (method, idem_key)
);

CREATE TABLE fit (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    campaign_id      bigint NOT NULL REFERENCES campaign,
    form             text NOT NULL,
    observation_hash text NOT NULL,
    body             jsonb NOT NULL,
    at               timestamptz NOT NULL DEFAULT now(),
    UNIQUE (campaign_id, form, observation_hash)
);

CREATE TABLE forecast (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    campaign_id    bigint NOT NULL REFERENCES campaign,
    n_params       double precision NOT NULL,
    n_tokens       double precision NOT NULL,
    n_observations integer NOT NULL,
    observation_hash text NOT NULL,
    body           jsonb NOT NULL,
    at             timestamptz NOT NULL DEFAULT now(),
    UNIQUE (campaign_id, n_params, n_tokens, observation_hash)
);

-- Controllers beat here: after an outage longer than half a lease every lease is first extended, then reaping resumes.
CREATE TABLE control_plane (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    beat_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO control_plane DEFAULT VALUES;
