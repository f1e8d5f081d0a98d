-- Who may call. A token is shown once, as id.secret; only the hash of its secret is kept.

CREATE TYPE role AS ENUM ('admin', 'client', 'worker', 'viewer');

CREATE TABLE token (
    id           text PRIMARY KEY,
    secret_hash  bytea NOT NULL,
    role         role NOT NULL,
    project      text,                      -- NULL: of every project
    note         text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz,
    CHECK (role <> 'admin' OR project IS NULL)
);
