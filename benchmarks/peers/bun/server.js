// Elysia on Bun with Bun.sql. One statement a request: a single round trip.
import { randomUUID } from 'node:crypto'
import { Elysia, status, t } from 'elysia'
import { v3 } from 'uuid'
import { refused, store, storeMany } from './store.js'

const metric = t.Object(
  {
    user_id: t.String({ format: 'uuid' }),
    metric_type: t.String({ pattern: '^[a-z][a-z0-9_]{0,63}$' }),
    value: t.Number(),
    // The format date-time of Elysia also takes what JavaScript's Date writes, and numbers.
    timestamp: t.String({ pattern: '^\\d{4}-\\d\\d-\\d\\d[Tt ]\\d\\d:\\d\\d:\\d\\d(\\.\\d+)?([Zz]|[+-]\\d\\d:\\d\\d)$' }),
    session_id: t.Optional(t.String({ format: 'uuid' })),
    metric_id: t.Optional(t.String({ format: 'uuid' }))
  },
  { additionalProperties: false }
)
const metrics = t.Array(metric, { minItems: 1, maxItems: 10000 })

// normalize: false, so that an unknown field is refused and not removed.
new Elysia({ normalize: false, serve: { hostname: '127.0.0.1', maxRequestBodySize: 10 * 1024 * 1024 } })
  .onError(({ code, error }) => {
    if (refused(error)) return status(422, { detail: 'unknown user or metric type' })
    if (code === 'UNKNOWN') console.error(error)
  })
  .post('/ingest/', async ({ body }) => {
    await store(row(body))
    return { message: 'Metric stored successfully!' }
  }, { body: metric })
  .post('/ingest_batch/', async ({ body }) => {
    await storeMany(body.map(row))
    return { stored: body.length }
  }, { body: metrics })
  .listen(Number(process.env.PORT))

const EARLIEST = Date.UTC(2000, 0, 1)
const DAY = 86_400_000

// The timestamp stays text: a Date would lose its microseconds.
function row(metric) {
  const instant = Date.parse(metric.timestamp)
  if (!(instant >= EARLIEST && instant <= Date.now() + DAY)) throw status(422, { detail: 'timestamp out of range' })
  return {
    user_id: metric.user_id,
    timestamp: metric.timestamp,
    metric_id: metric.metric_id ?? randomUUID(),
    session_id: metric.session_id ?? v3(new Date(instant).toISOString().slice(0, 10), metric.user_id),
    metric_type: metric.metric_type,
    value: metric.value
  }
}
