-- Gives a dispatched job to a worker: raises `attempt`, grants a lease, returns the log. Sent twice it acts once.
--
-- KEYS   none
-- ARGV   1 job id   2 worker   3 its incarnation   4 digest of its weights   5 tokens of the prompt
--        6 warnings (JSON list)   7 lease in ms   8 a name for this very claim
-- reply  {'claimed', attempt, entries of the log, ms that it may run, or -1}
--        {'refused', reason}: 'gone' no such job, 'terminal' it is over, 'running' another claim holds it, 'waiting' it
--        is not dispatched (its turn comes with another message), 'overdue' its time is over, and so is the job now,
--        'superseded' and 'digest' as wrong_weights says

local id, worker, incarnation, digest, prompt_tokens, warnings, lease_ms, claim = unpack(ARGV, 1, 8)
local status, checkpoint, created_at, attempt, tokens, held_by, known_warnings = read(
  id, 'status', 'checkpoint', 'created_at', 'attempt', 'tokens', 'claim', 'warnings')

if not status then
  return {'refused', 'gone'}
end
if is_terminal(status) then
  return {'refused', 'terminal'}
end
if status == 'running' then
  if held_by == claim then
    return {'claimed', tonumber(attempt), redis.call('XRANGE', KEY.tokens(id), '-', '+'), time_left(id) or -1}
  end
  return {'refused', 'running'}
end
if not redis.call('ZSCORE', KEY.dispatched(checkpoint), id) then
  return {'refused', 'waiting'}
end
local wrong = wrong_weights(id, digest)
if wrong then
  return {'refused', wrong}
end
local until_ms = waits_until(id)
if until_ms and NOW_MS >= until_ms then
  finish_overdue(id)
  return {'refused', 'overdue'}
end

leave_queue(id, checkpoint)
attempt = attempt + 1
write(id, 'status', 'running', 'attempt', attempt, 'worker', worker, 'incarnation', incarnation, 'claim', claim,
  'attempt_started_at', NOW_MS, 'prompt_tokens', prompt_tokens, 'resumed_tokens', tokens,
  'warnings', merged(known_warnings, warnings))
redis.call('HSETNX', KEY.job(id), 'started_at', NOW_MS)
redis.call('ZADD', KEY.running(checkpoint), NOW_MS + lease_ms, id)
redis.call('ZREM', KEY.jobs_with('queued'), id)
redis.call('ZADD', KEY.jobs_with('running'), created_at, id)
if attempt > 1 then
  redis.call('XADD', KEY.tokens(id), next_mark(id, tokens), 'attempt', attempt)
end
notify_state(id)
dispatch(checkpoint)
return {'claimed', attempt, redis.call('XRANGE', KEY.tokens(id), '-', '+'), time_left(id) or -1}
