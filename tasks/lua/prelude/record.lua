-- First part of the prelude: time, the fields of a record, and notifications about it. tasks/store/scripts.py puts the four
-- files of this folder in front of every script, after three generated tables: KEY, the key builders of tasks/store/keys.py
-- under their names there; LIMIT, the numbers of tasks/store/scripts.py; FAILURE, the errors of tasks/failures.py as JSON.
--
-- Scripts take no KEYS. A job id leads to keys that only its record names (its checkpoint, its worker), so they build
-- what they touch: that needs one primary, and rules out Redis Cluster, which kombu cannot use either.
--
-- Redis refuses a write (memory full, disk failing) only as long as a script wrote nothing: each happens completely or
-- not at all, provided that a refusal of our own comes before the first write.

local clock = redis.call('TIME')
local NOW_MS = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- Microseconds since 2026-01-01 UTC: with ten priorities on top they stay exact in a double for 17 years.
local NOW_US = (clock[1] - 1767225600) * 1000000 + clock[2]

-- Serving order is one number: priority, then arrival; everything resumed lies below everything new.
local PRIORITY_STEP = 2 ^ 49
local RESUMED = 2 ^ 53

local TERMINAL = {'succeeded', 'failed', 'cancelled', 'expired'}

-- Digits of a whole number: Lua's own conversion rounds above 14 of them.
local function int(number)
  return string.format('%.0f', number)
end

-- Values of a record's fields, false where one is missing.
local function read(id, ...)
  return unpack(redis.call('HMGET', KEY.job(id), ...))
end

-- Sets fields of a record. Every change that a client can see goes through here: `version` rises.
local function write(id, ...)
  redis.call('HSET', KEY.job(id), ...)
  redis.call('HINCRBY', KEY.job(id), 'version', 1)
end

-- JSON list of the texts of two JSON lists, each once.
local function merged(known, more)
  local list, seen = cjson.decode(known), {}
  for _, text in ipairs(list) do
    seen[text] = true
  end
  for _, text in ipairs(cjson.decode(more)) do
    if not seen[text] then
      table.insert(list, text)
    end
  end
  -- cjson takes an empty table for an object.
  return #list > 0 and cjson.encode(list) or '[]'
end

local function is_terminal(status)
  return status ~= 'queued' and status ~= 'running'
end

-- Tells the waiters that a job's state changed, or that it has new tokens. They read what is new themselves. Returns how
-- many processes listened.
local function notify_state(id)
  return redis.call('PUBLISH', KEY.state_channel(id), '')
end

local function notify_tokens(id)
  return redis.call('PUBLISH', KEY.tokens_channel(id), '')
end

-- Tells the process that submitted a job, where it waits for the end alone, that it has come.
local function reply(id, reply_to)
  if reply_to then
    redis.call('PUBLISH', reply_to, id)
  end
end

-- Time that a job has run, in ms, in all attempts up to now.
local function run_ms(id)
  local earlier, attempt_started_at, status = read(id, 'run_ms', 'attempt_started_at', 'status')
  return earlier + (status == 'running' and NOW_MS - attempt_started_at or 0)
end

-- Time that a job may still run, in ms; nil where there is no limit.
local function time_left(id)
  local run_timeout, deadline_at = read(id, 'run_timeout_ms', 'deadline_at')
  local left = deadline_at and deadline_at - NOW_MS
  if run_timeout then
    left = math.min(left or math.huge, run_timeout - run_ms(id))
  end
  return left or nil
end
