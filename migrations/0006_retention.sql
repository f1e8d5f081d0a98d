-- Checkpoints that nothing will resume from: when that was decided, and when a worker had removed the files.

ALTER TABLE checkpoint ADD COLUMN dropped_at timestamptz;
ALTER TABLE checkpoint ADD COLUMN removed_at timestamptz CHECK (removed_at IS NULL OR dropped_at IS NOT NULL);
CREATE INDEX checkpoint_to_remove ON checkpoint (task_id, epoch) WHERE dropped_at IS NOT NULL AND removed_at IS NULL;
