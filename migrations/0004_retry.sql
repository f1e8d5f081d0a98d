-- A failed task may be tried again: the one move out of a final state. Its result goes, attempts and events stay.

CREATE OR REPLACE FUNCTION check_task_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state IS DISTINCT FROM NEW.state AND NOT (OLD.state::text || '>' || NEW.state::text = ANY (ARRAY[
        'ready>leased', 'ready>cancelled', 'leased>ready', 'leased>done', 'leased>failed', 'leased>cancelling',
        'cancelling>cancelled', 'failed>ready'])) THEN
        RAISE EXCEPTION 'a task cannot go from % to %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.epoch <> OLD.epoch + (CASE WHEN OLD.state = 'ready' AND NEW.state = 'leased' THEN 1 ELSE 0 END) THEN
        RAISE EXCEPTION 'epoch % cannot follow % on a move from % to %', NEW.epoch, OLD.epoch, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
