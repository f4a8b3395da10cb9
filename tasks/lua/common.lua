-- Put in front of every script by tasks/store/scripts.py, after three generated tables: KEY, the key builders of tasks/store/keys.py
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
local function ring_state(id)
  return redis.call('PUBLISH', KEY.state_bell(id), '')
end

local function ring_tokens(id)
  return redis.call('PUBLISH', KEY.token_bell(id), '')
end

-- Tells the process that submitted a job, where it waits for the end alone, that it has come.
local function reply(id, reply_to)
  if reply_to then
    redis.call('PUBLISH', reply_to, id)
  end
end

-- Slots of each live worker that takes jobs.
local function slots_serving(checkpoint)
  local found = {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEY.workers(checkpoint), '(' .. int(NOW_MS), '+inf')) do
    local slots, state = unpack(redis.call('HMGET', KEY.worker(name), 'slots', 'state'))
    if state == 'idle' or state == 'busy' then
      table.insert(found, tonumber(slots))
    end
  end
  return found
end

-- Jobs that may be dispatched or running at once: the slots of the live workers, and some spare messages for each, so
-- that a freed slot finds its next job on the list.
local function capacity(checkpoint)
  local jobs = 0
  for _, slots in ipairs(slots_serving(checkpoint)) do
    jobs = jobs + slots + LIMIT.SPARE_MESSAGES
  end
  return jobs
end

-- Scores of `dispatched` in the order in which this script hands them out: microseconds since 2026.
local last_dispatched_at = NOW_US
local function next_dispatched_at()
  last_dispatched_at = last_dispatched_at + 1
  return last_dispatched_at
end

-- Pushes jobs, given as {id, message}, to the end of Celery's list that is served first: the first of them is served
-- before the others, all of them before what is on the list.
local function push_first(checkpoint, jobs)
  for index = #jobs, 1, -1 do
    redis.call('ZADD', KEY.dispatched(checkpoint), -next_dispatched_at(), jobs[index][1])
    redis.call('RPUSH', KEY.queue(checkpoint), jobs[index][2])
  end
end

-- Moves the head of the backlog to Celery's list while the workers have room. Every script that changes something
-- about who waits, runs or serves ends with it.
--
-- Celery takes from the right. A new job goes to the left end, a resumed one to the right, and `dispatched` is scored
-- so that its order is that of the list; the score's absolute value is when it was dispatched, in microseconds since
-- 2026.
local function dispatch(checkpoint)
  local backlog, dispatched = KEY.backlog(checkpoint), KEY.dispatched(checkpoint)
  if redis.call('EXISTS', backlog) == 0 then
    if redis.call('EXISTS', dispatched) == 0 then
      redis.call('DEL', KEY.waiting_tokens(checkpoint))
    end
    return
  end
  local room = capacity(checkpoint) - redis.call('ZCARD', dispatched) - redis.call('ZCARD', KEY.running(checkpoint))
  local resumed = {}
  while room > 0 do
    local head = redis.call('ZPOPMIN', backlog)
    if not head[1] then
      break
    end
    local message = redis.call('HGET', KEY.job(head[1]), 'message')
    -- Without a record there is nothing to run.
    if message then
      room = room - 1
      if tonumber(head[2]) < 0 then
        table.insert(resumed, {head[1], message})
      else
        redis.call('ZADD', dispatched, next_dispatched_at(), head[1])
        redis.call('LPUSH', KEY.queue(checkpoint), message)
      end
    end
  end
  push_first(checkpoint, resumed)
end

-- The score of a job at the head of the backlog: behind other resumed ones of a more urgent priority or an earlier
-- arrival, before everything new.
local function head_score(score)
  return score - RESUMED
end

-- Until when a waiting job may wait, in ms; nil where it may wait for ever. What was begun once has no limit of its own
-- in the queue any more.
local function waits_until(id)
  local created_at, queue_timeout, deadline_at, attempt = read(
    id, 'created_at', 'queue_timeout_ms', 'deadline_at', 'attempt')
  local until_ms = deadline_at and tonumber(deadline_at) or nil
  if queue_timeout and attempt == '0' then
    until_ms = math.min(until_ms or math.huge, created_at + queue_timeout)
  end
  return until_ms
end

-- Adds to what the waiting jobs of a checkpoint may still generate. `sign` is 1 for a job that begins to wait, -1 for
-- one that waits no more.
local function count_waiting_tokens(id, checkpoint, sign)
  local max_tokens, tokens = read(id, 'max_tokens', 'tokens')
  -- A record that is gone tells no number; the sum is forgotten when nobody waits any more.
  if max_tokens then
    -- Minus nothing is spelled `-0`, which Redis takes for no number.
    local change = int(sign * math.max(0, max_tokens - tokens) + 0)
    if redis.call('INCRBY', KEY.waiting_tokens(checkpoint), change) <= 0 then
      redis.call('DEL', KEY.waiting_tokens(checkpoint))
    end
  end
end

-- Makes a job wait in the backlog.
local function enter_queue(id, checkpoint, score)
  redis.call('ZADD', KEY.backlog(checkpoint), score, id)
  count_waiting_tokens(id, checkpoint, 1)
  local until_ms = waits_until(id)
  if until_ms then
    redis.call('ZADD', KEY.TIMEOUTS, until_ms, id)
  end
end

-- Takes a job out of whatever it waits or runs in.
local function leave_queue(id, checkpoint)
  local waited = redis.call('ZREM', KEY.backlog(checkpoint), id) + redis.call('ZREM', KEY.dispatched(checkpoint), id)
  redis.call('ZREM', KEY.running(checkpoint), id)
  redis.call('ZREM', KEY.TIMEOUTS, id)
  if waited > 0 then
    count_waiting_tokens(id, checkpoint, -1)
  end
end

-- Takes a job without a record out of everything. Returns 1.
local function forget(id, checkpoint)
  leave_queue(id, checkpoint)
  redis.call('ZREM', KEY.JOBS, id)
  redis.call('ZREM', KEY.jobs_with('queued'), id)
  redis.call('ZREM', KEY.jobs_with('running'), id)
  redis.call('DEL', KEY.tokens(id))
  return 1
end

-- Pushes the messages of dispatched jobs again that are not on Celery's list: it lost them, or a worker took them and
-- nobody claimed the job. Only jobs that were dispatched until `until_us` (microseconds since 2026), and only while
-- somebody takes jobs. Each counts as dispatched just now. Returns how many were pushed, and how many were forgotten
-- for want of a record.
--
-- Celery takes messages in the order of `dispatched`: what it took or lost comes first, so a bounded look finds it.
local function push_again(checkpoint, until_us)
  local dispatched, list = KEY.dispatched(checkpoint), KEY.queue(checkpoint)
  local serving, missing, forgotten = capacity(checkpoint) > 0, {}, 0
  local early = redis.call('ZRANGEBYSCORE', dispatched, int(-until_us), int(until_us), 'LIMIT', 0, LIMIT.REAP_AT_ONCE)
  for _, id in ipairs(early) do
    local message = redis.call('HGET', KEY.job(id), 'message')
    if not message then
      forgotten = forgotten + forget(id, checkpoint)
    elseif serving and not redis.call('LPOS', list, message) then
      table.insert(missing, {id, message})
    end
  end
  push_first(checkpoint, missing)
  return #missing, forgotten
end

-- Forgets finished jobs whose records have expired, and lets the listing itself expire where no job is live.
local function tidy()
  local gone = redis.call('ZRANGEBYSCORE', KEY.EXPIRIES, '-inf', NOW_MS, 'LIMIT', 0, LIMIT.TIDY_AT_ONCE)
  if #gone > 0 then
    redis.call('ZREM', KEY.EXPIRIES, unpack(gone))
    redis.call('ZREM', KEY.JOBS, unpack(gone))
    for _, status in ipairs(TERMINAL) do
      redis.call('ZREM', KEY.jobs_with(status), unpack(gone))
    end
  end
  if redis.call('EXISTS', KEY.jobs_with('queued'), KEY.jobs_with('running')) == 0 then
    local last = redis.call('ZREVRANGE', KEY.EXPIRIES, 0, 0, 'WITHSCORES')[2]
    if last then
      redis.call('PEXPIREAT', KEY.JOBS, last)
      redis.call('PEXPIREAT', KEY.EXPIRIES, last)
    end
  else
    redis.call('PERSIST', KEY.JOBS)
    redis.call('PERSIST', KEY.EXPIRIES)
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

-- A running average of a hash's field, in which the newest value has a fixed weight.
local function average(key, field, value)
  local before = redis.call('HGET', key, field)
  if before then
    value = before + LIMIT.PACE_WEIGHT * (value - before)
  end
  redis.call('HSET', key, field, string.format('%.6g', value))
end

-- Learns from a job that is about to succeed how long jobs take, and how far its own estimate was off. One that was
-- taken over says more about the worker that died.
local function learn_pace(id, checkpoint)
  local attempt, max_tokens, tokens, created_at, started_at, first_token_at, predicted = read(
    id, 'attempt', 'max_tokens', 'tokens', 'created_at', 'started_at', 'first_token_at', 'predicted_ms')
  if attempt ~= '1' or not first_token_at then
    return
  end
  local pace = KEY.pace(checkpoint)
  average(pace, 'first_token_ms', first_token_at - started_at)
  if tonumber(tokens) > 1 then
    average(pace, 'ms_per_token', (NOW_MS - first_token_at) / (tokens - 1))
  end
  average(pace, 'share', tokens / max_tokens)
  redis.call('PEXPIRE', pace, LIMIT.PACE_TTL_MS)
  if predicted then
    redis.call('LPUSH', KEY.accuracy(checkpoint), string.format('%.4g', (NOW_MS - created_at) / predicted))
    redis.call('LTRIM', KEY.accuracy(checkpoint), 0, LIMIT.ACCURACY_WINDOW - 1)
    redis.call('PEXPIRE', KEY.accuracy(checkpoint), LIMIT.PACE_TTL_MS)
  end
end

-- Ends a job. `outcome` has `status`, `finish_reason`, `completion`, where it failed `error` (JSON), and where its
-- worker heard of a cancel `cancel_tokens`, how many tokens it knew by then. Those that were logged when the cancel was
-- asked for came before it in any case.
local function finish(id, outcome)
  local checkpoint, from, created_at, result_ttl, requested_at, cancel_tokens, tokens, key_hash, key_ttl, reply_to =
    read(id, 'checkpoint', 'status', 'created_at', 'result_ttl_ms', 'cancel_requested_at', 'cancel_tokens', 'tokens',
      'idempotency', 'idempotency_ttl_ms', 'reply_to')
  local expires_at = NOW_MS + result_ttl
  if outcome.status == 'succeeded' then
    learn_pace(id, checkpoint)
  end
  -- First, for it goes by the record as it was.
  leave_queue(id, checkpoint)
  write(id, 'status', outcome.status, 'finish_reason', outcome.finish_reason, 'completion', outcome.completion,
    'finished_at', NOW_MS, 'expires_at', expires_at)
  if outcome.error then
    redis.call('HSET', KEY.job(id), 'error', outcome.error)
  end
  if requested_at then
    local before = math.max(tonumber(cancel_tokens), outcome.cancel_tokens or 0)
    redis.call('HSET', KEY.job(id), 'cancel_acked_at', NOW_MS, 'cancel_tokens_after', tokens - before)
  end
  redis.call('HDEL', KEY.job(id), 'message', 'claim', 'reply_to')
  redis.call('ZREM', KEY.jobs_with(from), id)
  redis.call('ZADD', KEY.jobs_with(outcome.status), created_at, id)
  redis.call('ZADD', KEY.EXPIRIES, expires_at, id)
  redis.call('PEXPIREAT', KEY.job(id), expires_at)
  redis.call('PEXPIREAT', KEY.tokens(id), expires_at)
  redis.call('PEXPIREAT', KEY.jobs_with(outcome.status), redis.call('ZREVRANGE', KEY.EXPIRIES, 0, 0, 'WITHSCORES')[2])
  if key_hash then
    redis.call('PEXPIRE', KEY.idempotency(key_hash), key_ttl)
  end
  tidy()
  ring_state(id)
  reply(id, reply_to)
  dispatch(checkpoint)
end

-- Text of a job's log.
local function logged_text(id)
  local text = {}
  for _, entry in ipairs(redis.call('XRANGE', KEY.tokens(id), '-', '+')) do
    local values = entry[2]
    for index = 1, #values, 2 do
      if values[index] == 'pieces' then
        table.insert(text, table.concat(cjson.decode(values[index + 1])))
      end
    end
  end
  return table.concat(text)
end

-- Ends a job as cancelled, with the text that it has so far.
local function finish_cancelled(id)
  finish(id, {status = 'cancelled', finish_reason = 'cancelled', completion = logged_text(id)})
end

-- Ends a job as failed, with the text that it has so far. `failure` is JSON.
local function finish_failed(id, failure)
  finish(id, {status = 'failed', finish_reason = 'error', completion = logged_text(id), error = failure})
end

-- Ends a waiting job whose time is over: one that nobody ever began has expired, another one has failed with the text
-- that it has.
local function finish_overdue(id)
  local attempt, deadline_at = read(id, 'attempt', 'deadline_at')
  local outcome = {status = 'failed', error = FAILURE.DEADLINE_EXCEEDED}
  if attempt == '0' then
    local at_deadline = deadline_at and NOW_MS >= tonumber(deadline_at)
    outcome = {status = 'expired', error = at_deadline and FAILURE.EXPIRED or FAILURE.START_TIMEOUT}
  end
  outcome.finish_reason, outcome.completion = 'deadline', logged_text(id)
  finish(id, outcome)
end

-- Takes a running job from its worker and puts it at the head of the backlog; the caller dispatches. Where its worker was
-- lost with it, `lost` is true, and that counts; a hand-over does not.
local function requeue(id, lost)
  local checkpoint, score, created_at, losses, in_a_row, requested_at = read(
    id, 'checkpoint', 'score', 'created_at', 'losses', 'losses_in_a_row', 'cancel_requested_at')
  if requested_at then
    return finish_cancelled(id)
  end
  if lost then
    losses, in_a_row = losses + 1, in_a_row + 1
    redis.call('HSET', KEY.job(id), 'losses', losses, 'losses_in_a_row', in_a_row)
    if in_a_row >= LIMIT.MAX_LOSSES_IN_A_ROW or losses >= LIMIT.MAX_LOSSES then
      return finish_failed(id, FAILURE.WORKER_LOST)
    end
  end
  local left = time_left(id)
  if left and left <= 0 then
    return finish_overdue(id)
  end
  leave_queue(id, checkpoint)
  write(id, 'status', 'queued', 'run_ms', run_ms(id))
  redis.call('HDEL', KEY.job(id), 'claim', 'worker', 'incarnation')
  enter_queue(id, checkpoint, head_score(score))
  redis.call('ZREM', KEY.jobs_with('running'), id)
  redis.call('ZADD', KEY.jobs_with('queued'), created_at, id)
  ring_state(id)
end

-- Pushes the message of a dispatched job again whose worker took it and will not claim the job: it is next in line.
local function put_back(id)
  local checkpoint, message = read(id, 'checkpoint', 'message')
  if redis.call('ZSCORE', KEY.dispatched(checkpoint), id) and not redis.call('LPOS', KEY.queue(checkpoint), message) then
    push_first(checkpoint, {{id, message}})
  end
end

-- Whether a worker may decide about a waiting job: its weights must be those that the job was accepted for. Returns nil
-- where it may. 'superseded': the worker is the odd one out, and the job is given back. 'digest': no worker can have
-- those weights any more, and the job has failed.
local function wrong_weights(id, digest)
  local checkpoint, accepted = read(id, 'checkpoint', 'digest')
  if digest == accepted then
    return nil
  end
  if redis.call('HGET', KEY.card(checkpoint), 'digest') == accepted then
    put_back(id)
    return 'superseded'
  end
  finish_failed(id, FAILURE.CHECKPOINT_CHANGED)
  return 'digest'
end

-- Id of the next entry without tokens of its own behind `tokens` tokens.
local function next_mark(id, tokens)
  local last = redis.call('XREVRANGE', KEY.tokens(id), '+', '-', 'COUNT', 1)[1]
  local count = last and string.match(last[1], '^' .. tokens .. '%-(%d+)$') or 0
  return tokens .. '-' .. int(count + 1)
end

-- Appends tokens to a log that holds `length` of them. `before` is how many the sender believes it holds, `ids` are
-- separated by spaces, `pieces` is a JSON list of one text for each. What the log has already is skipped. Returns the
-- log's new length, or nil where tokens would be missing.
local function append_tokens(id, length, before, ids, pieces)
  if before > length then
    return nil
  end
  local list = {}
  for token in string.gmatch(ids, '%d+') do
    table.insert(list, token)
  end
  local after = before + #list
  if after <= length then
    return length
  end
  local known = length - before
  if known > 0 then
    ids = table.concat(list, ' ', known + 1)
    local all, rest = cjson.decode(pieces), {}
    for index = known + 1, #all do
      table.insert(rest, all[index])
    end
    pieces = cjson.encode(rest)
  end
  -- A new token clears what was held against the job.
  redis.call('HSET', KEY.job(id), 'tokens', after, 'losses_in_a_row', 0)
  redis.call('HSETNX', KEY.job(id), 'first_token_at', NOW_MS)
  redis.call('XADD', KEY.tokens(id), int(after) .. '-0', 'ids', ids, 'pieces', pieces)
  return after
end

-- Enters a heartbeat; the caller dispatches. `fields` are those of the worker's hash: field, value, ...
local function announce(name, checkpoint, ttl_ms, fields)
  redis.call('HSET', KEY.worker(name), 'heartbeat_at', NOW_MS, unpack(fields))
  redis.call('HSETNX', KEY.worker(name), 'started_at', NOW_MS)
  redis.call('PEXPIRE', KEY.worker(name), ttl_ms)
  redis.call('ZADD', KEY.workers(checkpoint), NOW_MS + ttl_ms, name)
  local last = redis.call('ZREVRANGE', KEY.workers(checkpoint), 0, 0, 'WITHSCORES')
  redis.call('PEXPIREAT', KEY.workers(checkpoint), last[2])
  tidy()
end

-- Jobs ahead of a waiting one; -1 where it does not wait.
local function position(id, checkpoint, status)
  if status ~= 'queued' then
    return -1
  end
  local ahead = redis.call('ZRANK', KEY.dispatched(checkpoint), id)
  return ahead or redis.call('ZCARD', KEY.dispatched(checkpoint)) + redis.call('ZRANK', KEY.backlog(checkpoint), id)
end

-- What a client may see of a job: {record as field, value, ...; jobs ahead of it, or -1 where it does not wait}. False
-- where there is no such job.
local function view(id)
  local record = redis.call('HGETALL', KEY.job(id))
  if #record == 0 then
    return false
  end
  return {record, position(id, read(id, 'checkpoint', 'status'))}
end
