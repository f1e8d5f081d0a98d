-- What trainers print, and how busy workers are, as it was last heard.
ALTER TABLE attempt ADD COLUMN tail text NOT NULL DEFAULT '';
ALTER TABLE worker ADD COLUMN load jsonb NOT NULL DEFAULT '{}';

CREATE OR REPLACE VIEW dash_worker AS
SELECT worker.id AS worker, worker.host, worker.device, worker.slots::float8 AS slots, held.n AS leases, worker.seen_at,
       greatest(extract(epoch FROM now() - worker.seen_at), 0)::float8 AS silent_seconds,
       CASE WHEN worker.draining THEN 'draining' WHEN worker.seen_at < now() - interval '60 seconds' THEN 'silent'
            WHEN held.n > 0 THEN 'busy' ELSE 'waiting' END AS state,
       (load ->> 'utilisation')::float8 AS utilisation, (load ->> 'memory_bytes')::float8 AS memory_bytes,
       (load ->> 'memory_total_bytes')::float8 AS memory_total_bytes, (load ->> 'joules')::float8 AS joules,
       load ->> 'energy_source' AS energy_source
FROM worker
CROSS JOIN LATERAL (SELECT count(*)::float8 AS n FROM lease WHERE lease.worker_id = worker.id) AS held;
