-- What wrk sends: metrics of many users, about half of them with a session of their own, timestamps of now in microseconds.
-- Arguments after "--": the file of user ids, one a line; the path; the metrics in a request (0: one metric, not in an array).

local BODIES = 64 -- of a batch, made beforehand: building them would take the CPU that is being measured
local users, head, size, bodies, turn = {}, "", 0, {}, 0
local seconds, second_text, hour = 0, "", 0
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

local function metric()
  local now = os.time()
  if now ~= seconds then
    seconds, second_text, hour = now, os.date("!%Y-%m-%dT%H:%M:%S", now), math.floor(now / 3600) % 65536
  end
  local n, kind, name, value = math.random(#users), math.random(4), "voice_sentiment", nil
  if kind == 1 then
    name, value = "talked_time", math.random(0, 8640000) / 100
  elseif kind == 4 then
    value = math.random(-1000, 1000) / 1000
  else
    name, value = kind == 2 and "microphone_used" or "speaker_used", math.random(0, 1)
  end
  local session = ""
  if n % 2 == 0 then -- this user's session of this hour
    session = string.format(',"session_id":"%08x%s"', n * 65536 + hour, users[n]:sub(9))
  end
  return string.format('{"user_id":"%s","metric_type":"%s","value":%s,"timestamp":"%s.%06dZ"%s}',
    users[n], name, value, second_text, math.random(0, 999999), session)
end

local function batch()
  local items = {}
  for i = 1, size do items[i] = metric() end
  return "[" .. table.concat(items, ",") .. "]"
end

function init(args)
  for line in io.lines(args[1]) do users[#users + 1] = line end
  size = tonumber(args[3])
  head = "POST " .. args[2] .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
  math.randomseed(os.time() * 16 + number)
  if size > 0 then
    for i = 1, BODIES do bodies[i] = batch() end
  end
end

function request()
  local body
  if size > 0 then
    turn = turn % BODIES + 1
    body = bodies[turn]
  else
    body = metric()
  end
  return head .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %f, "refused": %d, "lost": %d, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
