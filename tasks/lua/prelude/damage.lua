-- Records that cannot be used, and keys that hold another type than ours.
--
-- A record may be damaged by another program, by an operator, or by a bug. One damaged record must not stop the others:
-- a script that walks over many jobs checks each of them, and ends a damaged one as failed.

-- Scripts run this text at each call, so what only some calls need is made inside functions.

local STATUSES = {'queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired'}

local function is_status(value)
  for _, status in ipairs(STATUSES) do
    if value == status then
      return true
    end
  end
  return false
end

-- Returns the type of a key, 'none' if it does not exist.
local function type_of(key)
  return redis.call('TYPE', key).ok
end

-- Returns whether a text is a whole number from 0 to `most`. Lua's `tonumber` also accepts ' 1', '0x1', '1e9', 'nan' and
-- 'inf'. Each number of up to 14 digits is within every limit.
local function is_count(text, most)
  if text == '' or string.find(text, '%D') then
    return false
  end
  return #text < 15 or #text < 17 and tonumber(text) <= most
end

-- Returns whether a text is a Celery message of a job.
local function is_message_of(id, text)
  local decoded, message = pcall(cjson.decode, text)
  return decoded and type(message) == 'table' and type(message.headers) == 'table' and message.headers.id == id
end

-- Returns the names of the damaged fields of a record: an empty list if it can be used, nil if there is no such record.
-- The name is `record` if the key holds no hash, and `log` if the key of the token log holds no stream. Fields that no
-- script uses, JSON and texts are not checked: the processes that read them do that.
local function damaged_fields(id)
  local record, log = type_of(KEY.job(id)), type_of(KEY.tokens(id))
  if record == 'none' then
    return nil
  elseif record ~= 'hash' then
    return {'record'}
  end
  local damaged = {}
  if log ~= 'none' and log ~= 'stream' then
    table.insert(damaged, 'log')
  end

  -- Numbers that each record has, then numbers that it may have.
  local numbers = {
    'version', 'created_at', 'score', 'attempt', 'losses', 'losses_in_a_row', 'resumed_tokens', 'tokens', 'max_tokens',
    'run_ms', 'result_ttl_ms', 'priority', 'queue_timeout_ms', 'run_timeout_ms', 'deadline_ms', 'deadline_at', 'started_at',
    'attempt_started_at', 'first_token_at', 'finished_at', 'expires_at', 'cancel_requested_at', 'cancel_acked_at',
    'cancel_tokens', 'prompt_tokens', 'predicted_ms', 'idempotency_ttl_ms', 'reserved_bytes', 'load_ms'}
  for index, value in ipairs(redis.call('HMGET', KEY.job(id), unpack(numbers))) do
    local name = numbers[index]
    if value and not is_count(value, name == 'score' and LIMIT.MOST_COUNT or LIMIT.MOST_TIME_MS) or not value and index <= 12
    then
      table.insert(damaged, name)
    end
  end

  local its_id, owner, checkpoint, digest, status, input, metadata, warnings, priority, message, worker, incarnation,
    attempt_started_at, finished_at, expires_at, finish_reason, completion, failure, requested_at, cancel_tokens,
    key_hash, key_ttl, reply_to = get_fields(
      id, 'id', 'owner', 'checkpoint', 'digest', 'status', 'input', 'metadata', 'warnings', 'priority', 'message', 'worker',
      'incarnation', 'attempt_started_at', 'finished_at', 'expires_at', 'finish_reason', 'completion', 'error',
      'cancel_requested_at', 'cancel_tokens', 'idempotency', 'idempotency_ttl_ms', 'reply_to')
  local function require(condition, name)
    if not condition then
      table.insert(damaged, name)
    end
  end
  require(its_id == id, 'id')
  require(owner, 'owner')
  require(checkpoint and checkpoint ~= '', 'checkpoint')
  require(digest, 'digest')
  require(is_status(status), 'status')
  require(input, 'input')
  require(metadata, 'metadata')
  require(warnings, 'warnings')
  require(not priority or #priority == 1, 'priority')
  require(not requested_at or cancel_tokens, 'cancel_tokens')
  require(key_hash ~= '', 'idempotency')
  require(not key_hash or key_ttl, 'idempotency_ttl_ms')
  require(reply_to ~= '', 'reply_to')
  if status == 'queued' or status == 'running' then
    require(message, 'message')
  end
  if status == 'running' then
    require(worker and worker ~= '', 'worker')
    require(incarnation, 'incarnation')
    require(attempt_started_at, 'attempt_started_at')
  elseif status ~= 'queued' then
    require(finished_at, 'finished_at')
    require(expires_at, 'expires_at')
    require(finish_reason, 'finish_reason')
    require(completion, 'completion')
    require(failure or status ~= 'failed' and status ~= 'expired', 'error')
  end
  return damaged
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
    local runs = redis.call('ZREM', KEY.running(checkpoint), id)
    if waits + runs > 0 then
      found, waited = checkpoint, waits > 0
    end
    if runs > 0 then
      remove_from_worker(id)
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

-- Replaces the damaged fields of a record that each record has, and removes the other ones. `checkpoint` is where the job
-- was queued.
local function replace_fields(id, is_damaged, checkpoint)
  local defaults = {
    id = id,
    owner = '',
    checkpoint = checkpoint or 'unknown',
    digest = '',
    status = 'failed',
    version = 1,
    priority = 5,
    input = '{"prompt":"","seed":0}',
    metadata = '{}',
    warnings = '[]',
    created_at = redis.call('ZSCORE', KEY.JOBS, id) or format_int(NOW_MS),
    score = 0,
    attempt = 0,
    losses = 0,
    losses_in_a_row = 0,
    resumed_tokens = 0,
    tokens = log_length(id),
    max_tokens = 0,
    run_ms = 0,
    result_ttl_ms = LIMIT.DAMAGED_TTL_MS,
  }
  for name, default in pairs(defaults) do
    if is_damaged[name] or is_damaged.record then
      redis.call('HSET', KEY.job(id), name, default)
    end
  end
  for name in pairs(is_damaged) do
    if defaults[name] == nil then
      redis.call('HDEL', KEY.job(id), name)
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
  if not is_damaged.reserved_bytes then
    release_memory(id)
  end
  replace_fields(id, is_damaged, checkpoint)

  -- Without these fields of an ended job its result is not known.
  local keeps_result = is_status(from) and is_terminal(from)
  for _, name in ipairs({'record', 'status', 'input', 'completion', 'finish_reason', 'error'}) do
    keeps_result = keeps_result and not is_damaged[name]
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

-- Calls `step(id, ...)`, the part of a script that handles one of many jobs. If it fails, the job's record is damaged, and
-- the job ends as failed. Returns the result of `step`, nil if it failed.
local function guard(id, step, ...)
  local done, result = pcall(step, id, ...)
  if done then
    return result
  end
  -- Redis 6.2 raises texts, later ones tables.
  local reason = type(result) == 'table' and result.err or tostring(result)
  -- These are no fault of a record: Redis refuses a command for a while, or an operator stops the script.
  local refusals = {'OOM', 'MISCONF', 'READONLY', 'NOREPLICAS', 'MASTERDOWN', 'NOPERM', 'UNKILLABLE', 'killed'}
  for _, code in ipairs(refusals) do
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

-- Deletes those of some keys that hold another type than they should, so that scripts can use them again. The reaper
-- rebuilds them from the records. Returns how many there were.
local function repair_types(type, ...)
  local repaired = 0
  for _, key in ipairs({...}) do
    repaired = repaired + repair_key(key, type)
  end
  return repaired
end

-- Deletes a key that should hold a number and does not. Returns 1 if it did, else 0.
local function repair_number(key)
  local repaired = repair_key(key, 'string')
  local number = redis.call('GET', key)
  if number and not is_count(number, LIMIT.MOST_COUNT) then
    redis.call('DEL', key)
    repaired = 1
  end
  return repaired
end

-- Repairs the keys of the queue that belong to no checkpoint. Returns how many were repaired.
local function repair_shared_keys()
  local repaired = repair_number(KEY.RESERVED) + repair_types('list', KEY.DAMAGED)
    + repair_types('set', KEY.CHECKPOINTS) + repair_types('hash', KEY.REAPED, KEY.UNACKED, KEY.RETRACTED)
    + repair_types('zset', KEY.JOBS, KEY.EXPIRIES, KEY.TIMEOUTS, KEY.UNACKED_INDEX, KEY.SWITCHING, KEY.OFFERED,
      KEY.WAITING)
    + repair_types('string', KEY.CATALOG_VERSION)
  for _, status in ipairs(STATUSES) do
    repaired = repaired + repair_types('zset', KEY.jobs_with(status))
  end
  return repaired
end

-- Repairs the keys of one checkpoint. Returns how many were repaired.
local function repair_keys_of(checkpoint)
  return repair_types('list', KEY.queue(checkpoint), KEY.accuracy(checkpoint))
    + repair_types('hash', KEY.card(checkpoint), KEY.pace(checkpoint), KEY.capacity(checkpoint))
    + repair_types('zset', KEY.backlog(checkpoint), KEY.dispatched(checkpoint), KEY.running(checkpoint),
      KEY.workers(checkpoint))
    + repair_types('set', KEY.offering(checkpoint)) + repair_types('string', KEY.loading(checkpoint))
    + repair_number(KEY.waiting_tokens(checkpoint))
end
