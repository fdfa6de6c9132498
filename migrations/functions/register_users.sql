-- Registers users, a JSON array of {"user_id", "name", "email", "created_at"}, or updates the name and email of those that
-- exist. Without the key "email" the stored one stays; null removes it. "created_at" is for users from another database.
-- Returns one object for each, in order: {"position" (from 1), "email", "created_at", "created": true for a new user,
-- "changed": true for a new user and for one with another name or email than before}, or
-- {"position", "outcome": "being_erased"} for a user whose erasure is under way: it can be registered again after that.
CREATE OR REPLACE FUNCTION register_users(batch json) RETURNS json
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $function$
DECLARE
    sent       record;
    known      record;
    registered record;
    outcomes   json[];
BEGIN
    -- One by one, because a batch may name a user twice, which a single INSERT ... DO UPDATE refuses.
    -- In key order, because two overlapping batches in different orders would deadlock.
    FOR sent IN
        SELECT (item ->> 'user_id')::uuid AS user_id, item ->> 'name' AS name, item ->> 'email' AS email,
               item -> 'email' IS NOT NULL AS has_email, (item ->> 'created_at')::timestamptz AS created_at, position
        FROM json_array_elements(batch) WITH ORDINALITY AS user_sent (item, position)
        ORDER BY user_id, position
    LOOP
        IF EXISTS (SELECT FROM user_erasures WHERE user_id = sent.user_id) THEN
            outcomes[sent.position] := json_build_object('position', sent.position, 'outcome', 'being_erased');
            CONTINUE;
        END IF;
        SELECT * INTO known FROM users WHERE user_id = sent.user_id;
        INSERT INTO users AS stored (user_id, name, email, created_at)
        VALUES (sent.user_id, sent.name, sent.email, coalesce(sent.created_at, now()))
        ON CONFLICT (user_id) DO UPDATE
            SET name = excluded.name, email = CASE WHEN sent.has_email THEN excluded.email ELSE stored.email END
        RETURNING stored.name, stored.email, stored.created_at, xmax = 0 AS is_new INTO registered;
        outcomes[sent.position] := json_build_object(
            'position', sent.position, 'email', registered.email, 'created_at', registered.created_at,
            'created', registered.is_new,
            'changed', (registered.name, registered.email) IS DISTINCT FROM (known.name, known.email));
        DELETE FROM forgotten_users WHERE user_digest = sha256(uuid_send(sent.user_id));
    END LOOP;
    RETURN to_json(outcomes);
END
$function$;
