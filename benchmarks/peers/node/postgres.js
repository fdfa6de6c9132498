// postgres.js: prepared statements, which it pipelines on each connection.
import postgres from 'postgres'

const sql = postgres({ max: Number(process.env.POOL) })
const column = (metrics, name) => metrics.map((metric) => metric[name])

export const store = (m) => sql`
  WITH session AS (
    INSERT INTO sessions (user_id, session_id, start_time)
    VALUES (${m.user_id}, ${m.session_id}, ${m.timestamp}::text::timestamptz)
    ON CONFLICT DO NOTHING
  )
  INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
  VALUES (${m.user_id}, ${m.timestamp}::text::timestamptz, ${m.metric_id}, ${m.session_id}, ${m.metric_type}, ${m.value})
  ON CONFLICT DO NOTHING`

// Arrays cost less than json_to_recordset here. In key order: two batches in different orders would deadlock.
export const storeMany = (metrics) => sql`
  WITH item AS (
    SELECT * FROM unnest(
      ${column(metrics, 'user_id')}::uuid[], ${column(metrics, 'timestamp')}::text[]::timestamptz[],
      ${column(metrics, 'metric_id')}::uuid[], ${column(metrics, 'session_id')}::uuid[],
      ${column(metrics, 'metric_type')}::text[], ${column(metrics, 'value')}::float8[]
    ) AS item (user_id, timestamp, metric_id, session_id, metric_type, value)
  ), session AS (
    INSERT INTO sessions (user_id, session_id, start_time)
    SELECT user_id, session_id, min(timestamp) FROM item GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT DO NOTHING
  )
  INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value)
  SELECT * FROM item ORDER BY user_id, timestamp, metric_id
  ON CONFLICT DO NOTHING`

export const refused = (error) => error.code === '23503'
