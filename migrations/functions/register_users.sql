-- Registers users, a JSON array of {"user_id", "name", "email"}, or updates the name and email of those that exist.
-- Returns one object for each, in order: {"position" (from 1), "created_at", "created": true for a new user}.

CREATE OR REPLACE FUNCTION register_users(batch json) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $function$
DECLARE
    sent       record;
    is_new     boolean;
    created_at timestamptz;
    outcomes   json[] := '{}';
BEGIN
    -- One by one, because a batch may name a user twice, which a single INSERT ... DO UPDATE refuses.
    -- In key order, because two overlapping batches in different orders would deadlock.
    FOR sent IN
        SELECT * FROM ROWS FROM (json_to_recordset(batch) AS (user_id uuid, name varchar, email varchar))
                      WITH ORDINALITY AS user_sent (user_id, name, email, position)
        ORDER BY user_id, position
    LOOP
        INSERT INTO users AS existing (user_id, name, email) VALUES (sent.user_id, sent.name, sent.email)
        ON CONFLICT (user_id) DO UPDATE SET name = excluded.name, email = excluded.email
        RETURNING existing.created_at, existing.xmax = 0 INTO created_at, is_new;
        outcomes := outcomes || json_build_object('position', sent.position, 'created_at', created_at, 'created', is_new);
    END LOOP;
    RETURN (SELECT json_agg(outcome ORDER BY (outcome ->> 'position')::bigint) FROM unnest(outcomes) AS outcome);
END
$function$;
REVOKE ALL ON FUNCTION register_users FROM PUBLIC;
