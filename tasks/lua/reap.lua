-- Brings back what got lost: the jobs of workers that died, and messages that nobody acts on. Every process calls it each
-- second; it throttles itself, so that all of them together do the work once. For each checkpoint:
--
-- 1. A running job whose lease is over waits at the head of the backlog, with its tokens. It counts as a loss, and one
--    loss too many fails it; one that was asked to stop is cancelled; one whose time is over fails.
-- 2. Workers that count as gone leave the registry.
-- 3. A dispatched job that nobody claimed in time, and whose message is not on Celery's list, is pushed again, first in
--    line and without counting a loss; at once where a worker has just gone, for it may have taken the message along.
--    Only while somebody takes jobs.
-- 4. Jobs whose record is gone leave the queue and the listing. Of the backlog it looks at some, drawn at random.
-- 5. What fits is dispatched.
--
-- And whatever checkpoint it waits for, a job that may wait no longer is over.
--
-- A busy worker may hold a dispatched job for long: it took the message, and waits for KV memory before it claims. Such a
-- job is pushed again as well, for another worker may have room, but at most once in each timeout, since its time starts
-- anew, and never while its message is on the list. One claim succeeds, the other message is refused.
--
-- Nobody can renew a lease while Redis is away. So when no process called for longer than a gap, all leases are first
-- extended to their full length, once: a second gap within two leases extends nothing, so that calls which are always
-- late cannot keep a dead worker's jobs for ever.
--
-- KEYS   none
-- ARGV   1 ms between two runs   2 ms without a call that are a gap   3 lease in ms
--        4 ms until a dispatched job is pushed again
-- reply  {leases that were over, messages pushed again, workers gone, jobs without a record, leases extended,
--        jobs that waited too long}

local every_ms, gap_ms, lease_ms, dispatch_timeout_ms = unpack(ARGV)
local called_at, ran_at, extended_at = unpack(redis.call('HMGET', KEY.REAPED, 'called_at', 'ran_at', 'extended_at'))

redis.call('HSET', KEY.REAPED, 'called_at', NOW_MS)
redis.call('PEXPIRE', KEY.REAPED, gap_ms + 2 * lease_ms)
-- A clock that was set back must not stop the reaper.
if ran_at and NOW_MS - ran_at >= 0 and NOW_MS - ran_at < tonumber(every_ms) then
  return {0, 0, 0, 0, 0, 0}
end
redis.call('HSET', KEY.REAPED, 'ran_at', NOW_MS)

local checkpoints = redis.call('SMEMBERS', KEY.CHECKPOINTS)
local over, pushed, gone, dropped, extended = 0, 0, 0, 0, 0

local was_away = not called_at or NOW_MS - called_at > tonumber(gap_ms)
if was_away and (not extended_at or NOW_MS - extended_at > 2 * lease_ms) then
  for _, checkpoint in ipairs(checkpoints) do
    for _, id in ipairs(redis.call('ZRANGE', KEY.running(checkpoint), 0, -1)) do
      extended = extended + redis.call('ZADD', KEY.running(checkpoint), 'XX', 'GT', 'CH', NOW_MS + lease_ms, id)
    end
  end
  if extended > 0 then
    redis.call('HSET', KEY.REAPED, 'extended_at', NOW_MS)
  end
end

local overdue = redis.call('ZRANGEBYSCORE', KEY.TIMEOUTS, '-inf', NOW_MS, 'LIMIT', 0, LIMIT.REAP_AT_ONCE)
for _, id in ipairs(overdue) do
  if read(id, 'status') == 'queued' then
    finish_overdue(id)
  else
    redis.call('ZREM', KEY.TIMEOUTS, id)
  end
end

for _, checkpoint in ipairs(checkpoints) do
  local running = KEY.running(checkpoint)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', running, '-inf', NOW_MS, 'LIMIT', 0, LIMIT.REAP_AT_ONCE)) do
    if read(id, 'status') then
      return_to_backlog(id, true)
      over = over + 1
    else
      dropped = dropped + remove_orphan(id, checkpoint)
    end
  end

  local gone_here = redis.call('ZREMRANGEBYSCORE', KEY.workers(checkpoint), '-inf', NOW_MS)
  local until_us = gone_here > 0 and NOW_US or NOW_US - dispatch_timeout_ms * 1000
  local pushed_here, forgotten = push_again(checkpoint, until_us)
  gone, pushed, dropped = gone + gone_here, pushed + pushed_here, dropped + forgotten

  for _, id in ipairs(redis.call('ZRANDMEMBER', KEY.backlog(checkpoint), LIMIT.REAP_AT_ONCE)) do
    if redis.call('EXISTS', KEY.job(id)) == 0 then
      dropped = dropped + remove_orphan(id, checkpoint)
    end
  end
  dispatch(checkpoint)
end
tidy()
return {over, pushed, gone, dropped, extended, #overdue}
