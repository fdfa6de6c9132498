-- What wrk sends: metrics of many users, about half of them with a session of their own, timestamps of now in microseconds.
-- Arguments after "--": the file of user ids, one a line; the path; the metrics in a request (0: one metric, not in an array);
-- and, for a client that sends what was stored before, a Unix time: the same time gives the same metrics, with ids of their own.
-- To a path that ends with /v1/metrics it sends OTLP in protobuf, with another resource in each request: equal records would
-- have equal ids, and be duplicates.

local count = 64 -- of batches, made beforehand: building them would take the CPU that is being measured
local users, head, size, bodies, turn = {}, "", 0, {}, 0
local seconds, second_text, hour = 0, "", 0
local threads = 0
local fixed = nil -- the time of all metrics
local ffi, otlp, turns = require("ffi"), false, 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

local function metric()
  local now = fixed or os.time()
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
  if fixed then
    session = session .. string.format(',"metric_id":"%08x-%04x-4000-8000-%012x"',
      math.random(0, 2^32 - 1), math.random(0, 2^16 - 1), math.random(0, 2^48 - 1))
  end
  return string.format('{"user_id":"%s","metric_type":"%s","value":%s,"timestamp":"%s.%06dZ"%s}',
    users[n], name, value, second_text, math.random(0, 999999), session)
end

local function batch()
  local items = {}
  for i = 1, size do items[i] = metric() end
  return "[" .. table.concat(items, ",") .. "]"
end

-- A protobuf field of bytes, and of eight bytes.
local function field(number, content)
  local size, length = #content, ""
  while size > 127 do
    length, size = length .. string.char(size % 128 + 128), math.floor(size / 128)
  end
  return string.char(number * 8 + 2) .. length .. string.char(size) .. content
end

local function fixed64(number, value) -- a double, or an integer of the FFI
  local kind = type(value) == "number" and "double[1]" or "uint64_t[1]"
  return string.char(number * 8 + 1) .. ffi.string(ffi.new(kind, value), 8)
end

local function attribute(number, key, text)
  return field(number, field(1, key) .. field(2, field(1, text)))
end

local NAMES = { "talked_time", "microphone_used", "speaker_used", "voice_sentiment" }

local function points() -- the scope_metrics of a request
  local now, of_kind, metrics = os.time(), { {}, {}, {}, {} }, ""
  for i = 1, size do
    local n, kind = math.random(#users), math.random(4)
    local value = kind == 1 and math.random(0, 8640000) / 100 or kind == 4 and math.random(-1000, 1000) / 1000 or math.random(0, 1)
    local at = 1000000000ULL * now + 1000ULL * math.random(0, 999999)
    local session = n % 2 == 0
      and attribute(7, "session.id", string.format("%08x%s", n * 65536 + math.floor(now / 3600) % 65536, users[n]:sub(9))) or ""
    table.insert(of_kind[kind], field(1, fixed64(3, at) .. fixed64(4, value) .. attribute(7, "user.id", users[n]) .. session))
  end
  for kind, list in ipairs(of_kind) do
    local data = table.concat(list)
    metrics = metrics .. field(2, field(1, NAMES[kind]) .. (kind == 1 and field(7, data .. "\16\1") or field(5, data)))
  end
  return field(2, metrics)
end

local function otlp_body(made)
  turns = turns + 1
  return field(1, field(1, attribute(1, "service.instance.id", string.format("%016d", turns * 16 + number))) .. made)
end

function init(args)
  for line in io.lines(args[1]) do users[#users + 1] = line end
  size = tonumber(args[3])
  otlp = args[2]:find("/v1/metrics$") ~= nil
  head = "POST " .. args[2] .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: "
    .. (otlp and "application/x-protobuf" or "application/json") .. "\r\nContent-Length: "
  fixed = tonumber(args[4])
  math.randomseed((fixed or os.time()) * 16 + number)
  turns = os.time() * 1000000 -- no earlier run has sent the same
  if size > 0 then
    count = math.max(count, 6400 / size) -- so that small batches have many users as well
    for i = 1, count do bodies[i] = otlp and points() or batch() end
  end
end

function request()
  local body
  if size > 0 then
    turn = turn % count + 1
    body = otlp and otlp_body(bodies[turn]) or bodies[turn]
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
