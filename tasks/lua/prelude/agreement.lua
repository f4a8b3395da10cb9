-- The sets of the queue agree with the records. Each script changes both at once, so they differ
-- only if a key was lost or changed by something else.

-- Removes a job without a record from the queue and from the listing. Returns whether there was anything to remove.
local function remove_everywhere(id)
  local found = leave_all_queues(id)
  local listed = redis.call('ZREM', KEY.JOBS, id) + redis.call('ZREM', KEY.EXPIRIES, id)
  for _, status in ipairs(STATUSES) do
    listed = listed + redis.call('ZREM', KEY.jobs_with(status), id)
  end
  redis.call('DEL', KEY.tokens(id))
  return found or listed > 0
end

-- Makes the sets agree with the record of a live job. A queued job without a place gets its place back. A running job
-- without a lease gets one: if its worker is gone, the lease runs out. Returns whether something was wrong.
local function place_live(id, lease_ms)
  local status, checkpoint, created_at, score, attempt = get_fields(
    id, 'status', 'checkpoint', 'created_at', 'score', 'attempt')
  local backlog, dispatched, running = KEY.backlog(checkpoint), KEY.dispatched(checkpoint), KEY.running(checkpoint)
  local waits = redis.call('ZSCORE', backlog, id) or redis.call('ZSCORE', dispatched, id)
  local runs = redis.call('ZSCORE', running, id)
  local wrong = false
  -- The queue of another checkpoint that has the job shows that the record names a wrong one.
  if not waits and not runs and leave_all_queues(id) then
    fail_damaged(id, {'checkpoint'})
    return true
  end
  redis.call('SADD', KEY.CHECKPOINTS, checkpoint)
  if status == 'queued' then
    if runs then
      redis.call('ZREM', running, id)
    end
    if not waits then
      enter_queue(id, checkpoint, attempt == '0' and score or resumed_score(score))
    end
    local until_ms = waits_until(id)
    wrong = runs or not waits or until_ms and redis.call('ZADD', KEY.TIMEOUTS, until_ms, id) > 0
  else
    if waits then
      leave_queue(id, checkpoint)
    end
    if waits or not runs then
      redis.call('ZADD', running, runs or NOW_MS + lease_ms, id)
    end
    wrong = waits or not runs
  end
  local listed = redis.call('ZADD', KEY.JOBS, created_at, id)
  for _, other in ipairs(STATUSES) do
    if other == status then
      listed = listed + redis.call('ZADD', KEY.jobs_with(other), created_at, id)
    else
      listed = listed + redis.call('ZREM', KEY.jobs_with(other), id)
    end
  end
  -- The record of a live job does not expire.
  listed = listed + redis.call('PERSIST', KEY.job(id)) + redis.call('PERSIST', KEY.tokens(id))
  return wrong or listed > 0
end

-- Makes the sets agree with the record of an ended job. Returns whether something was wrong.
local function place_ended(id, status)
  local listed = redis.call('ZSCORE', KEY.JOBS, id) and redis.call('ZSCORE', KEY.EXPIRIES, id)
  for _, other in ipairs(STATUSES) do
    listed = listed and not redis.call('ZSCORE', KEY.jobs_with(other), id) == (other ~= status)
  end
  local checkpoint, created_at, expires_at = get_fields(id, 'checkpoint', 'created_at', 'expires_at')
  local queued = redis.call('ZSCORE', KEY.backlog(checkpoint), id) or redis.call('ZSCORE', KEY.dispatched(checkpoint), id)
    or redis.call('ZSCORE', KEY.running(checkpoint), id) or redis.call('ZSCORE', KEY.TIMEOUTS, id)
  if listed and not queued and redis.call('PTTL', KEY.job(id)) > 0 then
    return false
  end
  leave_all_queues(id)
  list_ended(id, status, created_at, expires_at)
  return true
end

-- Makes the sets agree with a job's record. A damaged job fails. Returns 1 if something was wrong, else 0.
local function place(id, lease_ms)
  local damaged = damaged_fields(id)
  if not damaged then
    return remove_everywhere(id) and 1 or 0
  elseif #damaged > 0 then
    fail_damaged(id, damaged)
    return 1
  end
  local status = get_fields(id, 'status')
  if is_terminal(status) then
    return place_ended(id, status) and 1 or 0
  end
  return place_live(id, lease_ms) and 1 or 0
end

-- Checks a part of all jobs: the records among some keys of Redis, then some jobs of the listing. Calls with the cursor that
-- the last call returned check all of them in the end. Returns the next cursor, and how many jobs were wrong.
local function place_some(cursor, lease_ms)
  local prefix, wrong = KEY.job(''), 0
  local next_cursor, found = unpack(redis.call('SCAN', cursor, 'MATCH', prefix .. '*', 'COUNT', LIMIT.PLACE_AT_ONCE))
  for _, key in ipairs(found) do
    local id = string.sub(key, #prefix + 1)
    -- The other keys that begin like this are the token logs.
    if not string.find(id, ':', 1, true) then
      wrong = wrong + (guard(id, place, lease_ms) or 1)
    end
  end
  for _, id in ipairs(redis.call('ZRANDMEMBER', KEY.JOBS, LIMIT.PLACE_AT_ONCE)) do
    if redis.call('EXISTS', KEY.job(id)) == 0 then
      wrong = wrong + place(id, lease_ms)
    end
  end
  return next_cursor, wrong
end
