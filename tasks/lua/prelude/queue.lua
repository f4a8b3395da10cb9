-- Third part of the prelude: who waits, who is dispatched, and what moves from the backlog to Celery's list.

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
local function remove_orphan(id, checkpoint)
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
      forgotten = forgotten + remove_orphan(id, checkpoint)
    elseif serving and not redis.call('LPOS', list, message) then
      table.insert(missing, {id, message})
    end
  end
  push_first(checkpoint, missing)
  return #missing, forgotten
end

-- Pushes the message of a dispatched job again whose worker took it and will not claim the job: it is next in line.
local function requeue(id)
  local checkpoint, message = read(id, 'checkpoint', 'message')
  if redis.call('ZSCORE', KEY.dispatched(checkpoint), id) and not redis.call('LPOS', KEY.queue(checkpoint), message) then
    push_first(checkpoint, {{id, message}})
  end
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
