DROP FUNCTION store_metrics(uuid[], timestamptz[], uuid[], uuid[], text[], float8[], boolean[]);
DROP FUNCTION store_doubtful_metrics(uuid[], timestamptz[], uuid[], uuid[], text[], float8[]);
