// pg: a pool, and a named (prepared) statement.
import pg from 'pg'

const pool = new pg.Pool({ max: Number(process.env.POOL) })
const text = `
  WITH session AS (
    INSERT INTO sessions (user_id, session_id, start_time) VALUES ($1, $4, $2) ON CONFLICT DO NOTHING
  )
  INSERT INTO metrics (user_id, timestamp, metric_id, session_id, metric_type, value) VALUES ($1, $2, $3, $4, $5, $6)
  ON CONFLICT DO NOTHING`

export const store = (m) =>
  pool.query({
    name: 'store',
    text,
    values: [m.user_id, m.timestamp, m.metric_id, m.session_id, m.metric_type, m.value]
  })

export const refused = (error) => error.code === '23503'
