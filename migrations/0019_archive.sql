-- The rows of a study can go (`isoloss db archive`): an event that goes asks who was decided by it.

DROP INDEX result_study;
CREATE INDEX result_study ON result (study_id, decided_seq);
