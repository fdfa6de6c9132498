-- Registers users, a JSON array of {"user_id", "name", "email"}, or updates the name and email of those that exist.
-- Returns one object for each, in order: {"position" (from 1), "created_at", "created": true for a new user}.
CREATE OR REPLACE FUNCTION register_users(batch json) RETURNS json
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $function$
DECLARE
    sent     record;
    outcome  json;
    outcomes json[];
BEGIN
    -- One by one, because a batch may name a user twice, which a single INSERT ... DO UPDATE refuses.
    -- In key order, because two overlapping batches in different orders would deadlock.
    FOR sent IN
        SELECT * FROM ROWS FROM (json_to_recordset(batch) AS (user_id uuid, name varchar, email varchar))
                      WITH ORDINALITY AS user_sent (user_id, name, email, position)
        ORDER BY user_id, position
    LOOP
        INSERT INTO users AS stored (user_id, name, email) VALUES (sent.user_id, sent.name, sent.email)
        ON CONFLICT (user_id) DO UPDATE SET name = excluded.name, email = excluded.email
        RETURNING json_build_object('position', sent.position, 'created_at', created_at, 'created', stored.xmax = 0)
        INTO outcome;
        outcomes[sent.position] := outcome;
    END LOOP;
    RETURN to_json(outcomes);
END
$function$;
