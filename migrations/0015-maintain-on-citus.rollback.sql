DO $block$
DECLARE
    change text[];
BEGIN
    FOREACH change SLICE 1 IN ARRAY ARRAY[
        ['create_metrics_partitions(integer)', 'EXISTS \(SELECT 1 FROM metrics_default', 'EXISTS (SELECT FROM metrics_default'],
        ['refresh_summaries()', '    IF to_regclass\(''pg_catalog.pg_dist_partition''.*?    END IF;\n', '']]
    LOOP
        EXECUTE regexp_replace(pg_get_functiondef(change[1]::regprocedure), change[2], change[3]);
    END LOOP;
END
$block$;
