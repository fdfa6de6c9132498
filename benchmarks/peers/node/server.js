// Fastify with postgres.js or with pg: node server.js postgres|pg. One statement a request: a single round trip.
import cluster from 'node:cluster'
import { randomUUID } from 'node:crypto'
import addFormats from 'ajv-formats'
import Fastify from 'fastify'
import { v3 } from 'uuid'

const workers = Number(process.env.WORKERS)
if (workers > 1 && cluster.isPrimary) {
  for (let i = 0; i < workers; i++) cluster.fork()
} else {
  const { store, storeMany, refused } = await import(`./${process.argv[2]}.js`)
  await serve(store, storeMany, refused)
}

async function serve(store, storeMany, refused) {
  const app = Fastify({
    bodyLimit: 10 * 1024 * 1024,
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false }, plugins: [[addFormats, ['uuid', 'date-time']]] }
  })
  const metric = {
    type: 'object',
    required: ['user_id', 'metric_type', 'value', 'timestamp'],
    additionalProperties: false,
    properties: {
      user_id: { type: 'string', format: 'uuid' },
      metric_type: { type: 'string', pattern: '^[a-z][a-z0-9_]{0,63}$' },
      value: { type: 'number' },
      timestamp: { type: 'string', format: 'date-time' },
      session_id: { type: 'string', format: 'uuid' },
      metric_id: { type: 'string', format: 'uuid' }
    }
  }
  const stored = { type: 'object', properties: { message: { type: 'string' }, stored: { type: 'integer' } } }

  app.setErrorHandler((error, request, reply) => {
    if (refused(error)) return reply.code(422).send({ detail: 'unknown user or metric type' })
    if (!error.statusCode) console.error(error)
    return reply.code(error.statusCode ?? 500).send({ detail: error.statusCode ? error.message : 'internal error' })
  })
  app.post('/ingest/', { schema: { body: metric, response: { 200: stored } } }, async (request) => {
    await store(row(request.body))
    return { message: 'Metric stored successfully!' }
  })
  const metrics = { type: 'array', items: metric, minItems: 1, maxItems: 10000 }
  app.post('/ingest_batch/', { schema: { body: metrics, response: { 200: stored } } }, async (request) => {
    await storeMany(request.body.map(row))
    return { stored: request.body.length }
  })
  await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT), backlog: 2048 })
}

const EARLIEST = Date.UTC(2000, 0, 1)
const DAY = 86_400_000

// The timestamp stays text: a Date would lose its microseconds.
function row(metric) {
  const instant = Date.parse(metric.timestamp)
  if (!(instant >= EARLIEST && instant <= Date.now() + DAY)) {
    throw Object.assign(new Error('timestamp out of range'), { statusCode: 422 })
  }
  return {
    user_id: metric.user_id,
    timestamp: metric.timestamp,
    metric_id: metric.metric_id ?? randomUUID(),
    session_id: metric.session_id ?? v3(new Date(instant).toISOString().slice(0, 10), metric.user_id),
    metric_type: metric.metric_type,
    value: metric.value
  }
}
