-- The node of each user, by the placement of the shard that has the user, who need not be registered. `users` is a JSON array
-- of ids. Returns an array of {"position" (from 1), "outcome": "located", "node"}; NULL while the tables are not distributed.
-- That this function exists tells the functions that the database is on Citus (storage/lane.py).
CREATE OR REPLACE FUNCTION locate_users(users json) RETURNS json
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'public.metrics'::regclass) THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT json_agg(json_build_object('position', position, 'outcome', 'located', 'node', groupid))
        FROM json_array_elements_text(users) WITH ORDINALITY AS sent (user_id, position)
        JOIN pg_dist_placement ON shardid = get_shard_id_for_distribution_column('public.users', user_id::uuid));
END
$function$;

-- store_metrics for users who are on one node. Distributed by `anchor`, one of them: Citus runs it on that node, and there it
-- needs no other one. Users who are elsewhere make it slow, not wrong.
CREATE OR REPLACE FUNCTION store_metrics_near(
    anchor uuid, user_ids uuid[], timestamps timestamptz[], metric_ids uuid[], session_ids uuid[], types text[],
    numbers float8[], new_sessions boolean[]
) RETURNS json LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $function$
BEGIN
    RETURN store_metrics(user_ids, timestamps, metric_ids, session_ids, types, numbers, new_sessions);
END
$function$;
