-- Which jobs wait, in which order, and how their messages get to Celery's list.

-- The score of a job in the backlog is one number: priority, then arrival. A resumed job has a negative score, so it
-- comes before every new job.
local PRIORITY_STEP = 2 ^ 49
local RESUMED = 2 ^ 53

-- Returns the score of a new job.
local function new_score(priority)
  return priority * PRIORITY_STEP + NOW_US
end

-- Returns the score of a resumed job: before every new job, and among resumed jobs by priority and arrival.
local function resumed_score(score)
  return score - RESUMED
end

-- Returns the time in ms at which the job with a score in the backlog was submitted.
local function submitted_at(score)
  -- The distance between resumed and new jobs is a multiple of the step.
  return math.floor(score % PRIORITY_STEP / 1000) + 1767225600000
end

-- Returns the time in ms until which a waiting job may wait; nil if it has no limit. The queue timeout applies only to
-- jobs that were never started.
local function waits_until(id)
  local created_at, queue_timeout, deadline_at, attempt = get_fields(
    id, 'created_at', 'queue_timeout_ms', 'deadline_at', 'attempt')
  local until_ms = deadline_at and tonumber(deadline_at) or nil
  if queue_timeout and attempt == '0' then
    until_ms = math.min(until_ms or math.huge, created_at + queue_timeout)
  end
  return until_ms
end

-- Updates the number of tokens that the waiting jobs of a checkpoint may still generate. `sign` is 1 for a job that
-- starts to wait, -1 for a job that no longer waits.
local function count_waiting_tokens(id, checkpoint, sign)
  local max_tokens, tokens = get_fields(id, 'max_tokens', 'tokens')
  -- A job without a record cannot be subtracted. `dispatch` resets the sum when no job waits.
  if max_tokens then
    -- Adding 0 turns -0 into 0: Redis does not accept `-0` as a number.
    local change = format_int(sign * math.max(0, max_tokens - tokens) + 0)
    if redis.call('INCRBY', KEY.waiting_tokens(checkpoint), change) <= 0 then
      redis.call('DEL', KEY.waiting_tokens(checkpoint))
    end
  end
end

-- Adds a job to the backlog.
local function enter_queue(id, checkpoint, score)
  redis.call('ZADD', KEY.backlog(checkpoint), score, id)
  redis.call('ZADD', KEY.WAITING, 'LT', submitted_at(tonumber(score)), checkpoint)
  count_waiting_tokens(id, checkpoint, 1)
  local until_ms = waits_until(id)
  if until_ms then
    redis.call('ZADD', KEY.TIMEOUTS, until_ms, id)
  end
end

-- Removes a job from the backlog, the dispatched jobs or the running jobs.
local function leave_queue(id, checkpoint)
  local waited = redis.call('ZREM', KEY.backlog(checkpoint), id) + redis.call('ZREM', KEY.dispatched(checkpoint), id)
  if redis.call('ZREM', KEY.running(checkpoint), id) > 0 then
    remove_from_worker(id)
  end
  redis.call('ZREM', KEY.TIMEOUTS, id)
  if waited > 0 then
    count_waiting_tokens(id, checkpoint, -1)
  end
end

-- Removes an orphan, a job without a record, from the queue and from the listing.
local function remove_orphan(id, checkpoint)
  leave_queue(id, checkpoint)
  redis.call('ZREM', KEY.JOBS, id)
  redis.call('ZREM', KEY.jobs_with('queued'), id)
  redis.call('ZREM', KEY.jobs_with('running'), id)
  redis.call('DEL', KEY.tokens(id))
end

-- Returns how many jobs may be dispatched or running at once: the slots of the live workers, and a few spare messages
-- for each worker, so that a free slot finds its next job on Celery's list.
local function capacity(checkpoint)
  local counts = live_counts(checkpoint)
  return counts.slots + counts.serving * LIMIT.SPARE_MESSAGES
end

-- Returns the next score for `dispatched`: the current time in microseconds since 2026, plus 1 for each earlier call.
local last_dispatched_at = NOW_US
local function next_dispatched_at()
  last_dispatched_at = last_dispatched_at + 1
  return last_dispatched_at
end

-- Pushes jobs, given as a list of {id, message}, to the end of Celery's list that is served first. They are served
-- before everything on the list, in the order given.
local function push_first(checkpoint, jobs)
  for index = #jobs, 1, -1 do
    redis.call('ZADD', KEY.dispatched(checkpoint), -next_dispatched_at(), jobs[index][1])
    redis.call('RPUSH', KEY.queue(checkpoint), jobs[index][2])
  end
end

-- Returns the message of a job that waits for a checkpoint. Nil for a job that cannot run: it has no record, or it does not
-- wait according to its record, or its record is damaged, and the job has ended now.
local function waiting_message(id, checkpoint)
  local status, message, its_checkpoint
  local damaged = damaged_fields(id)
  if damaged and #damaged == 0 then
    status, message, its_checkpoint = get_fields(id, 'status', 'message', 'checkpoint')
    if its_checkpoint ~= checkpoint then
      table.insert(damaged, 'checkpoint')
    elseif status == 'queued' and not is_message_of(id, message) then
      table.insert(damaged, 'message')
    end
  end
  if damaged and #damaged > 0 then
    fail_damaged(id, damaged)
    return nil
  end
  return status == 'queued' and message or nil
end

-- Moves jobs from the head of the backlog to Celery's list while the workers have capacity. Every script that changes
-- which jobs wait or run, or which workers serve, ends with it.
--
-- Celery takes messages from the right end of its list. A new job is pushed to the left end, a resumed one to the right
-- end. The scores in `dispatched` give the order of the list: the absolute value of a score is the time of the dispatch
-- in microseconds since 2026, and the score of a job that was pushed to the right end is negative.
local function dispatch(checkpoint)
  local backlog, dispatched = KEY.backlog(checkpoint), KEY.dispatched(checkpoint)
  if redis.call('EXISTS', backlog) == 0 then
    if redis.call('EXISTS', dispatched) == 0 then
      redis.call('DEL', KEY.waiting_tokens(checkpoint))
      redis.call('ZREM', KEY.WAITING, checkpoint)
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
    local message = waiting_message(head[1], checkpoint)
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

-- Requeues a dispatched job: a worker took its message but will not claim the job. The message is pushed again, unless
-- it is on Celery's list, and the job is served next.
local function requeue(id)
  local checkpoint, message = get_fields(id, 'checkpoint', 'message')
  if redis.call('ZSCORE', KEY.dispatched(checkpoint), id)
    and not redis.call('LPOS', KEY.queue(checkpoint), message) then
    push_first(checkpoint, {{id, message}})
  end
end

-- Pushes the messages of dispatched jobs that are missing from Celery's list: the list lost them, or a worker took them
-- and did not claim the job. It checks only jobs that were dispatched until `until_us` (microseconds since 2026), and
-- pushes only while a live worker takes jobs. A push sets a new dispatch time. Orphans among these jobs are removed.
-- Returns how many messages were pushed, and how many orphans were removed.
--
-- Celery takes messages in the order of `dispatched`, so the missing ones come first there: it is enough to check a
-- limited number of jobs. It also takes messages from the right end of its list, so the search begins there.
local function push_missing_messages(checkpoint, until_us)
  local dispatched, list = KEY.dispatched(checkpoint), KEY.queue(checkpoint)
  local serving, missing, orphans = capacity(checkpoint) > 0, {}, 0
  local early = redis.call(
    'ZRANGEBYSCORE', dispatched, format_int(-until_us), format_int(until_us), 'LIMIT', 0, LIMIT.REAP_AT_ONCE)
  for _, id in ipairs(early) do
    local message = waiting_message(id, checkpoint)
    if not message then
      if redis.call('EXISTS', KEY.job(id)) == 0 then
        remove_orphan(id, checkpoint)
        orphans = orphans + 1
      else
        redis.call('ZREM', dispatched, id)
      end
    elseif serving and not redis.call('LPOS', list, message, 'RANK', -1) then
      table.insert(missing, {id, message})
    end
  end
  push_first(checkpoint, missing)
  return #missing, orphans
end

-- Returns how many jobs are ahead of a waiting job; -1 for a job that does not wait, or that has lost its place: the
-- reaper gives it a new one.
local function position(id, checkpoint, status)
  if status ~= 'queued' or not checkpoint then
    return -1
  end
  local ahead = redis.call('ZRANK', KEY.dispatched(checkpoint), id)
  if ahead then
    return ahead
  end
  local rank = redis.call('ZRANK', KEY.backlog(checkpoint), id)
  return rank and redis.call('ZCARD', KEY.dispatched(checkpoint)) + rank or -1
end

-- Returns a job as view.lua documents it; false if it does not exist. The record is empty if its key holds no hash.
local function view(id)
  local record = redis.pcall('HGETALL', KEY.job(id))
  if record.err then
    return {{}, -1, id}
  elseif #record == 0 then
    return false
  end
  return {record, position(id, get_fields(id, 'checkpoint', 'status')), id}
end
