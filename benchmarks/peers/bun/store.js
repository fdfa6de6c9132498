// Bun.sql: a pool, and prepared statements, which it pipelines on each connection.
import { SQL } from 'bun'

const sql = new SQL({
  adapter: 'postgres',
  path: `${process.env.PGHOST}/.s.PGSQL.${process.env.PGPORT}`,
  username: process.env.PGUSER,
  database: process.env.PGDATABASE,
  max: Number(process.env.POOL)
})

export const store = (m) => sql`
  WITH session AS (
    INSERT INTO sessions (user_id, session_id, start_time)
    VALUES (${m.user_id}, ${m.session_id}, ${m.timestamp}::text::timestamptz)
    ON CONFLICT DO NOTHING
  )
  INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
  VALUES (${m.user_id}, ${m.timestamp}::text::timestamptz, ${m.metric_id}, ${m.session_id}, ${m.metric_type}, ${m.value})
  ON CONFLICT DO NOTHING`

// One parameter of JSON: a few percent more rows here than arrays by sql.array, in batches of 10, and as many in batches of 1,000.
// In key order: two batches in different orders would deadlock.
export const storeMany = (metrics) => sql`
  WITH item AS (
    SELECT * FROM json_to_recordset(${JSON.stringify(metrics)}::text::json)
      AS item (user_id uuid, timestamp timestamptz, metric_id uuid, session_id uuid, metric_type text, value float8)
  ), session AS (
    INSERT INTO sessions (user_id, session_id, start_time)
    SELECT user_id, session_id, min(timestamp) FROM item GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT DO NOTHING
  )
  INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
  SELECT * FROM item ORDER BY user_id, timestamp, metric_id
  ON CONFLICT DO NOTHING`

export const refused = (error) => error.errno === '23503' // Bun has PostgreSQL's code there
