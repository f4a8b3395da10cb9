-- Third part of the prelude: records that cannot be used, and keys that hold another type than ours.
--
-- A record may be damaged by another program, by an operator, or by a bug. One damaged record must not stop the others:
-- a script that walks over many jobs checks each of them, and ends a damaged one as failed.

-- Largest values of a record, by the kind of the field.
local MOST = {time = LIMIT.MOST_TIME_MS, duration = LIMIT.MOST_DURATION_MS, count = LIMIT.MOST_COUNT}

-- The fields that scripts use, with their kinds. `default` is what replaces a damaged value; without one, the field is
-- removed. `always` is true if each record has the field. The kinds `text` and `json` are not checked here: the processes
-- that read them do that.
local FIELDS = {
  {name = 'id', kind = 'id', always = true},
  {name = 'owner', kind = 'text', always = true, default = ''},
  {name = 'checkpoint', kind = 'name', always = true},
  {name = 'digest', kind = 'text', always = true, default = ''},
  {name = 'status', kind = 'status', always = true},
  {name = 'version', kind = 'count', always = true, default = 1},
  {name = 'priority', kind = 'priority', always = true, default = 5},
  {name = 'input', kind = 'json', always = true, default = '{"prompt":"","seed":0}'},
  {name = 'metadata', kind = 'json', always = true, default = '{}'},
  {name = 'warnings', kind = 'json', always = true, default = '[]'},
  {name = 'created_at', kind = 'time', always = true},
  {name = 'score', kind = 'count', always = true, default = 0},
  {name = 'attempt', kind = 'count', always = true, default = 0},
  {name = 'losses', kind = 'count', always = true, default = 0},
  {name = 'losses_in_a_row', kind = 'count', always = true, default = 0},
  {name = 'resumed_tokens', kind = 'count', always = true, default = 0},
  {name = 'tokens', kind = 'count', always = true},
  {name = 'max_tokens', kind = 'count', always = true, default = 0},
  {name = 'run_ms', kind = 'duration', always = true, default = 0},
  {name = 'result_ttl_ms', kind = 'duration', always = true, default = LIMIT.DAMAGED_TTL_MS},
  {name = 'queue_timeout_ms', kind = 'duration'},
  {name = 'run_timeout_ms', kind = 'duration'},
  {name = 'deadline_ms', kind = 'duration'},
  {name = 'idempotency_ttl_ms', kind = 'duration'},
  {name = 'predicted_ms', kind = 'duration'},
  {name = 'deadline_at', kind = 'time'},
  {name = 'started_at', kind = 'time'},
  {name = 'attempt_started_at', kind = 'time'},
  {name = 'first_token_at', kind = 'time'},
  {name = 'finished_at', kind = 'time'},
  {name = 'expires_at', kind = 'time'},
  {name = 'cancel_requested_at', kind = 'time'},
  {name = 'cancel_acked_at', kind = 'time'},
  {name = 'cancel_tokens', kind = 'count'},
  {name = 'cancel_tokens_after', kind = 'integer'},
  {name = 'prompt_tokens', kind = 'count'},
  {name = 'message', kind = 'message'},
  {name = 'worker', kind = 'name'},
  {name = 'incarnation', kind = 'name'},
  {name = 'finish_reason', kind = 'name'},
  {name = 'completion', kind = 'text'},
  {name = 'error', kind = 'text'},
  {name = 'idempotency', kind = 'name'},
  {name = 'reply_to', kind = 'name'},
  {name = 'retry_of', kind = 'name'},
}
local FIELD_NAMES = {}
for index, field in ipairs(FIELDS) do
  FIELD_NAMES[index] = field.name
end

-- Fields that a record must have in a state, or beside another field.
local LIVE_FIELDS = {'message'}
local RUNNING_FIELDS = {'worker', 'incarnation', 'attempt_started_at', 'started_at'}
local ENDED_FIELDS = {'finished_at', 'expires_at', 'finish_reason', 'completion'}
local COMPANIONS = {cancel_requested_at = 'cancel_tokens', idempotency = 'idempotency_ttl_ms'}

-- Without these fields of an ended job its result is not known.
local RESULT_FIELDS = {record = true, status = true, input = true, completion = true, finish_reason = true, error = true}

local STATUSES = {'queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired'}
local IS_STATUS = {}
for _, status in ipairs(STATUSES) do
  IS_STATUS[status] = true
end

-- Returns the type of a key, 'none' if it does not exist.
local function type_of(key)
  return redis.call('TYPE', key).ok
end

-- Returns whether a text is a whole number from `least` to `most`. Lua's `tonumber` also accepts ' 1', '0x1', '1e9',
-- 'nan' and 'inf'.
local function is_integer(text, least, most)
  if #text > 17 or not string.find(text, '^%-?%d+$') then
    return false
  end
  local number = tonumber(text)
  return number >= least and number <= most
end

-- Returns whether a text is a Celery message of a job.
local function is_message_of(id, text)
  local decoded, message = pcall(cjson.decode, text)
  return decoded and type(message) == 'table' and type(message.headers) == 'table' and message.headers.id == id
end

-- Returns whether a value of a field can be used.
local function is_usable(id, kind, value)
  if kind == 'text' or kind == 'json' then
    return true
  elseif kind == 'name' then
    return value ~= ''
  elseif kind == 'id' then
    return value == id
  elseif kind == 'status' then
    return IS_STATUS[value] ~= nil
  elseif kind == 'priority' then
    return is_integer(value, 0, 9)
  elseif kind == 'integer' then
    return is_integer(value, -MOST.count, MOST.count)
  elseif kind == 'message' then
    return is_message_of(id, value)
  end
  return is_integer(value, 0, MOST[kind])
end

-- Returns the names of the damaged fields of a record: an empty list if it can be used, nil if there is no such record.
-- The name is `record` if the key holds no hash, and `log` if the key of the token log holds no stream.
local function damaged_fields(id)
  local record, log = type_of(KEY.job(id)), type_of(KEY.tokens(id))
  if record == 'none' then
    return nil
  elseif record ~= 'hash' then
    return {'record'}
  end
  local names, has = {}, {}
  if log ~= 'none' and log ~= 'stream' then
    table.insert(names, 'log')
  end
  local values = redis.call('HMGET', KEY.job(id), unpack(FIELD_NAMES))
  for index, field in ipairs(FIELDS) do
    local value = values[index]
    has[field.name] = value
    if value and not is_usable(id, field.kind, value) or not value and field.always then
      table.insert(names, field.name)
    end
  end
  local function require_fields(required)
    for _, name in ipairs(required) do
      if not has[name] then
        table.insert(names, name)
      end
    end
  end
  if has.status == 'queued' or has.status == 'running' then
    require_fields(LIVE_FIELDS)
  end
  if has.status == 'running' then
    require_fields(RUNNING_FIELDS)
  elseif has.status and has.status ~= 'queued' then
    require_fields(ENDED_FIELDS)
  end
  if has.status == 'failed' or has.status == 'expired' then
    require_fields({'error'})
  end
  for name, companion in pairs(COMPANIONS) do
    if has[name] then
      require_fields({companion})
    end
  end
  return names
end

-- Reports damage: the reaper returns it to a process that logs it. `what` is a job id or a key.
local function report_damage(what, names)
  redis.call('RPUSH', KEY.DAMAGED, cjson.encode({what, table.concat(names, ' ')}))
  redis.call('LTRIM', KEY.DAMAGED, -LIMIT.DAMAGE_REPORTS, -1)
end

-- Removes a job from the queue of every checkpoint. Returns the checkpoint that it was in, false if it was in none, and
-- whether it waited there.
local function leave_all_queues(id)
  local found, waited = false, false
  for _, checkpoint in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
    local waits = redis.call('ZREM', KEY.backlog(checkpoint), id) + redis.call('ZREM', KEY.dispatched(checkpoint), id)
    if waits + redis.call('ZREM', KEY.running(checkpoint), id) > 0 then
      found, waited = checkpoint, waits > 0
    end
  end
  redis.call('ZREM', KEY.TIMEOUTS, id)
  return found, waited
end

-- Puts an ended job into the listing, until its record expires.
local function list_ended(id, status, created_at, expires_at)
  redis.call('ZADD', KEY.JOBS, created_at, id)
  for _, other in ipairs(STATUSES) do
    if other ~= status then
      redis.call('ZREM', KEY.jobs_with(other), id)
    end
  end
  redis.call('ZADD', KEY.jobs_with(status), created_at, id)
  redis.call('ZADD', KEY.EXPIRIES, expires_at, id)
  redis.call('PEXPIREAT', KEY.job(id), expires_at)
  redis.call('PEXPIREAT', KEY.tokens(id), expires_at)
  redis.call('PEXPIREAT', KEY.jobs_with(status), redis.call('ZREVRANGE', KEY.EXPIRIES, 0, 0, 'WITHSCORES')[2])
end

-- Replaces the damaged fields of a record. `is_damaged` has their names as keys. `checkpoint` is where the job was queued.
local function replace_fields(id, is_damaged, checkpoint)
  local key = KEY.job(id)
  local computed = {
    id = id,
    checkpoint = checkpoint or 'unknown',
    status = 'failed',
    created_at = redis.call('ZSCORE', KEY.JOBS, id) or format_int(NOW_MS),
    tokens = log_length(id),
  }
  for _, field in ipairs(FIELDS) do
    local name, default = field.name, field.default or computed[field.name]
    if is_damaged[name] or is_damaged.record then
      if field.always then
        redis.call('HSET', key, name, default)
      else
        redis.call('HDEL', key, name)
      end
    end
  end
end

-- Ends a job with a damaged record, whatever state it is in. `names` are the damaged fields, as in `damaged_fields`;
-- none of them, if the record looks usable and a script failed with it. The damaged fields get default values, so that
-- every reader can show the job. It fails, unless it had ended already and its result is not damaged.
local function fail_damaged(id, names)
  local key, is_damaged = KEY.job(id), {}
  for _, name in ipairs(names) do
    is_damaged[name] = true
  end
  if is_damaged.record then
    redis.call('DEL', key)
  end
  -- A log is damaged too if its entries cannot be read.
  local readable, text = pcall(logged_text, id)
  if is_damaged.log or not readable then
    redis.call('DEL', KEY.tokens(id))
    text = ''
  end
  local checkpoint, waited = leave_all_queues(id)
  local max_tokens, tokens, from = get_fields(id, 'max_tokens', 'tokens', 'status')
  if waited and not (is_damaged.max_tokens or is_damaged.tokens or is_damaged.record) then
    local left = format_int(math.max(0, max_tokens - tokens))
    if redis.call('DECRBY', KEY.waiting_tokens(checkpoint), left) <= 0 then
      redis.call('DEL', KEY.waiting_tokens(checkpoint))
    end
  end
  replace_fields(id, is_damaged, checkpoint)

  local keeps_result = IS_STATUS[from] and is_terminal(from)
  for name in pairs(is_damaged) do
    keeps_result = keeps_result and not RESULT_FIELDS[name]
  end
  local completion, finished_at, expires_at, result_ttl, key_hash, key_ttl, reply_to, created_at = get_fields(
    id, 'completion', 'finished_at', 'expires_at', 'result_ttl_ms', 'idempotency', 'idempotency_ttl_ms', 'reply_to',
    'created_at')
  finished_at = finished_at or format_int(NOW_MS)
  expires_at = expires_at or format_int(NOW_MS + result_ttl)
  local status = keeps_result and from or 'failed'
  set_fields(id, 'status', status, 'finished_at', finished_at, 'expires_at', expires_at)
  if not keeps_result then
    redis.call('HSET', key, 'finish_reason', 'error', 'error', FAILURE.RECORD_DAMAGED, 'completion', completion or text)
  end
  redis.call('HDEL', key, 'message', 'claim', 'reply_to')
  list_ended(id, status, created_at, expires_at)
  if key_hash then
    redis.call('PEXPIRE', KEY.idempotency(key_hash), key_ttl or LIMIT.DAMAGED_TTL_MS)
  end
  notify_state(id)
  notify_submitter(id, reply_to)
  report_damage(id, #names > 0 and names or {'unknown'})
end

-- Codes of errors that are no fault of a record: Redis refuses a command for a while, or an operator stops the script.
local REFUSALS = {'OOM', 'MISCONF', 'READONLY', 'NOREPLICAS', 'MASTERDOWN', 'NOPERM', 'UNKILLABLE', 'killed'}

-- Calls `step(id, ...)`, the part of a script that handles one of many jobs. If it fails, the job's record is damaged, and
-- the job ends as failed. Returns the result of `step`, nil if it failed.
local function guard(id, step, ...)
  local done, result = pcall(step, id, ...)
  if done then
    return result
  end
  -- Redis 6.2 raises texts, later ones tables.
  local reason = type(result) == 'table' and result.err or tostring(result)
  for _, code in ipairs(REFUSALS) do
    if string.find(reason, code, 1, true) then
      error(result, 0)
    end
  end
  local names = damaged_fields(id)
  if names then
    fail_damaged(id, names)
  end
  return nil
end

-- Deletes a key that holds another type than it should. Returns 1 if it did, else 0.
local function repair_key(key, type)
  local found = type_of(key)
  if found == 'none' or found == type then
    return 0
  end
  redis.call('DEL', key)
  report_damage(key, {'type'})
  return 1
end

-- Deletes the keys of the queue that hold another type than they should, so that scripts can use them again. The reaper
-- rebuilds them from the records. Returns how many there were.
local function repair_keys()
  local repaired = 0
  local function repair(keys, type)
    for _, key in ipairs(keys) do
      repaired = repaired + repair_key(key, type)
    end
  end
  repair({KEY.DAMAGED}, 'list')
  repair({KEY.CHECKPOINTS}, 'set')
  repair({KEY.REAPED, KEY.UNACKED}, 'hash')
  repair({KEY.JOBS, KEY.EXPIRIES, KEY.TIMEOUTS, KEY.UNACKED_INDEX}, 'zset')
  for _, status in ipairs(STATUSES) do
    repair({KEY.jobs_with(status)}, 'zset')
  end
  for _, checkpoint in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
    repair({KEY.queue(checkpoint), KEY.accuracy(checkpoint)}, 'list')
    repair({KEY.card(checkpoint), KEY.pace(checkpoint)}, 'hash')
    repair({KEY.backlog(checkpoint), KEY.dispatched(checkpoint), KEY.running(checkpoint), KEY.workers(checkpoint)}, 'zset')
    repair({KEY.waiting_tokens(checkpoint)}, 'string')
    local tokens = redis.call('GET', KEY.waiting_tokens(checkpoint))
    if tokens and not is_integer(tokens, -MOST.count, MOST.count) then
      redis.call('DEL', KEY.waiting_tokens(checkpoint))
      repaired = repaired + 1
    end
  end
  return repaired
end
