-- Reclaims jobs of lost workers, pushes lost messages again, and ends jobs that have waited past a time limit. Every
-- process calls it each second. It limits its own rate, so that all processes together do the work only once.
-- For each checkpoint:
--
-- 1. A running job whose lease has expired returns to the head of the backlog, with its tokens. This counts as a loss.
--    The job fails if it has too many losses or if a time limit has passed, and is cancelled if a cancel was requested.
-- 2. Workers without a recent heartbeat leave the registry.
-- 3. The message of a dispatched job that no worker claimed in time is pushed again if it is not on Celery's list. The
--    job is served next, and no loss is counted. If a worker has just left the registry, this happens at once, because the
--    worker may have taken the message. It happens only while a live worker takes jobs.
-- 4. Orphans, jobs without a record, leave the queue and the listing. In the backlog, a random sample is checked.
-- 5. Jobs are dispatched.
-- 6. Jobs fail that wait for a checkpoint which was retracted, if no worker has it.
--
-- Before that, the offers of switching workers without a recent heartbeat end. After it, the cards of checkpoints are
-- deleted that have not been offered for a while.
--
-- Once a minute the slots of one checkpoint are counted anew, of one checkpoint after the other.
-- Then, for a part of all jobs in each run, the sets are made to agree with the records (see prelude/agreement.lua). Jobs
-- with a damaged record fail, here and in every step above. Keys with a wrong type are deleted first.
--
-- A busy worker may hold a dispatched job for a long time: it takes the message, and waits for KV memory before it
-- claims the job. The message of such a job is pushed again too, because another worker may have room. That happens at
-- most once in each timeout, because the push sets a new dispatch time, and never while the message is on the list.
-- Only one claim succeeds; the other one is refused.
--
-- No worker can renew a lease while Redis is away. So if no process has called this script for longer than the gap, it
-- first extends all leases to their full length. The next extension comes after two lease times at the earliest:
-- otherwise, calls that are always late would keep the jobs of a lost worker running forever.
--
-- KEYS   none
-- ARGV   1 shortest time between two runs in ms   2 gap: time without a call in ms after which leases are extended
--        3 lease in ms   4 ms until the message of a dispatched job is pushed again
-- reply  {expired leases, messages pushed again, workers gone, orphans removed, leases extended,
--        waiting jobs that ended at a time limit, jobs whose sets did not agree with their records,
--        damage since the last run: for each job or key, JSON list of its name and of the damaged fields}

local every_ms, gap_ms, lease_ms, dispatch_timeout_ms = unpack(ARGV)
local called_at, ran_at, extended_at, recounted_at, cursor = unpack(redis.call(
  'HMGET', KEY.REAPED, 'called_at', 'ran_at', 'extended_at', 'recounted_at', 'cursor'))
called_at, ran_at, extended_at, recounted_at = finite(called_at), finite(ran_at), finite(extended_at), finite(recounted_at)

-- Returns whether less than a time in ms has passed since `at`. If `at` is in the future, the clock was set back, which
-- must not stop the reaper.
local function is_recent(at, ms)
  return at and NOW_MS - at >= 0 and NOW_MS - at < tonumber(ms)
end

-- Each process calls this script each second, and a write costs more than the rest of a call that does nothing. So not
-- every call is noted: an eighth of the gap is precise enough.
if not is_recent(called_at, gap_ms / 8) then
  write_even_if_full()
  redis.call('HSET', KEY.REAPED, 'called_at', NOW_MS)
  redis.call('PEXPIRE', KEY.REAPED, gap_ms + 2 * lease_ms)
end
if is_recent(ran_at, every_ms) then
  return {0, 0, 0, 0, 0, 0, 0, {}}
end
write_even_if_full()
redis.call('HSET', KEY.REAPED, 'ran_at', NOW_MS)

-- Most calls have returned by now.
-- [definitions]
repair_shared_keys()

-- Returns the checkpoints that have workers or jobs. The set of all names grows with each checkpoint that was ever served,
-- but a switching worker may offer very many: those are in it only while they have workers or jobs. Of the checkpoints
-- for which jobs only wait, a limited number is returned: the clock decides which.
local function active_checkpoints()
  local active, waiting = {}, {}
  for _, checkpoint in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
    if is_used(checkpoint) then
      table.insert(active, checkpoint)
    elseif is_waited_for(checkpoint) then
      table.insert(waiting, checkpoint)
    elseif redis.call('ZSCORE', KEY.OFFERED, checkpoint) then
      redis.call('SREM', KEY.CHECKPOINTS, checkpoint)
    end
  end
  for offset = 1, math.min(#waiting, LIMIT.REAP_WAITING_AT_ONCE) do
    table.insert(active, waiting[(NOW_US + offset) % #waiting + 1])
  end
  return active
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEY.SWITCHING, '-inf', NOW_MS)) do
  end_switching(name)
end

local checkpoints = active_checkpoints()
for _, checkpoint in ipairs(checkpoints) do
  repair_keys_of(checkpoint)
end
local expired, pushed, gone, orphans, extended, overdue = 0, 0, 0, 0, 0, 0

-- Extends the leases of all running jobs of a checkpoint. Returns how many.
local function extend_leases(checkpoint)
  local changed = 0
  in_parts(redis.call('ZRANGE', KEY.running(checkpoint), 0, -1), function(ids)
    local arguments = {}
    for _, id in ipairs(ids) do
      table.insert(arguments, NOW_MS + lease_ms)
      table.insert(arguments, id)
    end
    changed = changed + redis.call('ZADD', KEY.running(checkpoint), 'XX', 'GT', 'CH', unpack(arguments))
  end)
  return changed
end

local was_away = not called_at or NOW_MS - called_at > tonumber(gap_ms)
if was_away and (not extended_at or NOW_MS - extended_at > 2 * lease_ms) then
  for _, checkpoint in ipairs(checkpoints) do
    extended = extended + extend_leases(checkpoint)
  end
  if extended > 0 then
    redis.call('HSET', KEY.REAPED, 'extended_at', NOW_MS)
  end
end

local to_recount
if #checkpoints > 0 and not is_recent(recounted_at, LIMIT.RECOUNT_EVERY_MS) then
  redis.call('HSET', KEY.REAPED, 'recounted_at', NOW_MS)
  to_recount = checkpoints[math.floor(NOW_MS / LIMIT.RECOUNT_EVERY_MS) % #checkpoints + 1]
end

-- Ends a job that has waited too long.
local function end_overdue(id)
  local damaged = damaged_fields(id)
  if damaged and #damaged > 0 then
    return fail_damaged(id, damaged)
  end
  redis.call('ZREM', KEY.TIMEOUTS, id)
  if damaged and get_fields(id, 'status') == 'queued' then
    local until_ms = waits_until(id)
    if until_ms and until_ms <= NOW_MS then
      finish_overdue(id)
      overdue = overdue + 1
    elseif until_ms then
      redis.call('ZADD', KEY.TIMEOUTS, until_ms, id)
    end
  end
end

-- Takes a job whose lease has expired from its worker.
local function expire_lease(id, checkpoint)
  if redis.call('EXISTS', KEY.job(id)) == 0 then
    remove_orphan(id, checkpoint)
    orphans = orphans + 1
  elseif return_lost(id, checkpoint) then
    expired = expired + 1
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEY.TIMEOUTS, '-inf', NOW_MS, 'LIMIT', 0, LIMIT.REAP_AT_ONCE)) do
  guard(id, end_overdue)
end

for _, checkpoint in ipairs(checkpoints) do
  local running = KEY.running(checkpoint)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', running, '-inf', NOW_MS, 'LIMIT', 0, LIMIT.REAP_AT_ONCE)) do
    guard(id, expire_lease, checkpoint)
  end

  local gone_here = remove_expired_workers(checkpoint)
  if checkpoint == to_recount then
    recount_workers(checkpoint)
  end
  local until_us = gone_here > 0 and NOW_US or NOW_US - dispatch_timeout_ms * 1000
  local pushed_here, orphans_here = push_missing_messages(checkpoint, until_us)
  gone, pushed, orphans = gone + gone_here, pushed + pushed_here, orphans + orphans_here

  for _, id in ipairs(redis.call('ZRANDMEMBER', KEY.backlog(checkpoint), LIMIT.SAMPLE_AT_ONCE)) do
    if redis.call('EXISTS', KEY.job(id)) == 0 then
      remove_orphan(id, checkpoint)
      orphans = orphans + 1
    end
  end
  dispatch(checkpoint)
  fail_retracted(checkpoint)
  if redis.call('EXISTS', KEY.backlog(checkpoint), KEY.dispatched(checkpoint)) > 0 then
    -- Only if something else has removed it. How long the jobs wait is found out later.
    redis.call('ZADD', KEY.WAITING, 'NX', 0, checkpoint)
  end
end
forget_offers()
-- Without jobs that come or end, only this removes what has expired.
for _ = 1, LIMIT.PRUNES_PER_REAP do
  if prune_listing() < LIMIT.PRUNE_AT_ONCE then
    break
  end
end
local next_cursor, misplaced = place_some(cursor and #cursor < 19 and string.match(cursor, '^%d+$') or '0', lease_ms)
redis.call('HSET', KEY.REAPED, 'cursor', next_cursor)
for _, checkpoint in ipairs(misplaced > 0 and checkpoints or {}) do
  dispatch(checkpoint)
end
local damage = redis.call('LRANGE', KEY.DAMAGED, 0, LIMIT.REAP_AT_ONCE - 1)
redis.call('LTRIM', KEY.DAMAGED, LIMIT.REAP_AT_ONCE, -1)
return {expired, pushed, gone, orphans, extended, overdue, misplaced, damage}
