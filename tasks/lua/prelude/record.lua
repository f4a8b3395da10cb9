-- Time, the fields of a record, and notifications.
--
-- The prelude is these files: record, memory, log, workers, damage, queue, lifecycle, switching, agreement.
-- tasks/store/definitions.py puts what a script uses of them before the script, after what it uses of three generated tables:
--
--   KEY      the key and channel builders of tasks/store/keys.py, under the same names
--   LIMIT    the numbers of tasks/store/scripts.py
--   FAILURE  the errors of tasks/failures.py, as JSON
--
-- Scripts take no KEYS. A job id leads to keys that only the record names (its checkpoint, its worker), so a script
-- builds the keys that it uses. This needs one primary and rules out Redis Cluster, which kombu does not support.
--
-- A script writes everything or nothing. Redis may refuse a write (memory full, disk failing), but only the first write
-- of a script. So a script does all its checks, and returns its refusals, before its first write. Only a script that
-- accepts new work is refused when the memory is full: see `write_even_if_full`.

local clock = redis.call('TIME')
local NOW_MS = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- Microseconds since 2026-01-01 UTC: small enough to be exact in a double for 17 years, with ten priorities added.
local NOW_US = (clock[1] - 1767225600) * 1000000 + clock[2]

-- Formats a whole number. Lua's own conversion rounds numbers of more than 14 digits.
local function format_int(number)
  return string.format('%.0f', number)
end

-- Returns the number in a text; nil if there is none, or if it is not finite.
local function finite(text)
  local number = text and tonumber(text)
  return number and number == number and math.abs(number) < math.huge and number or nil
end

local function is_terminal(status)
  return status ~= 'queued' and status ~= 'running'
end

-- Returns the values of a record's fields, false for each field that does not exist.
local function get_fields(id, ...)
  return unpack(redis.call('HMGET', KEY.job(id), ...))
end

-- Sets fields of a record and increments its `version`. Every change that a client can see must increment it.
local function set_fields(id, ...)
  redis.call('HSET', KEY.job(id), ...)
  redis.call('HINCRBY', KEY.job(id), 'version', 1)
end

-- Returns how long a job has run, in ms, over all its attempts.
local function run_ms(id)
  local earlier, attempt_started_at, status = get_fields(id, 'run_ms', 'attempt_started_at', 'status')
  return earlier + (status == 'running' and NOW_MS - attempt_started_at or 0)
end

-- Returns how long a job may still run, in ms; nil if it has no limit.
local function time_left(id)
  local run_timeout, deadline_at = get_fields(id, 'run_timeout_ms', 'deadline_at')
  local left = deadline_at and deadline_at - NOW_MS
  if run_timeout then
    left = math.min(left or math.huge, run_timeout - run_ms(id))
  end
  return left or nil
end

-- Finds the job that an earlier request with an idempotency key created. Returns false if there was no such request, or if
-- Redis lost its job before it ended; otherwise a reply of submit.lua.
local function find_prior(key_hash, fingerprint)
  local key = KEY.idempotency(key_hash)
  local prior = redis.pcall('GET', key)
  local id, known = string.match(type(prior) == 'string' and prior or '', '^(%S+) (%S+)$')
  if not id then
    return false
  elseif known ~= fingerprint then
    return {'mismatch', id}
  elseif redis.call('EXISTS', KEY.job(id)) == 1 then
    return {'replayed', id}
  elseif redis.call('EXISTS', KEY.deleted(id)) == 1 then
    return {'gone', id, 'deleted'}
  end
  -- The key of a live job does not expire.
  return redis.call('PTTL', key) > 0 and {'gone', id, 'expired'}
end

-- Notifies subscribers that a job's state has changed. The message is empty: they read the change themselves.
local function notify_state(id)
  redis.call('PUBLISH', KEY.state_channel(id), '')
end

-- Notifies subscribers that a job has new tokens. Returns how many connections received the message.
local function notify_tokens(id)
  return redis.call('PUBLISH', KEY.tokens_channel(id), '')
end

-- Sends the id of a job that has ended to the process that submitted it, if that process waits for the end.
local function notify_submitter(id, reply_to)
  if reply_to then
    redis.call('PUBLISH', reply_to, id)
  end
end

-- Sends the id of a job that must stop to the worker that runs it.
local function notify_worker(id, worker)
  redis.call('PUBLISH', KEY.worker_channel(worker), id)
end
