-- Gives a dispatched job to a worker: increments `attempt`, grants a lease and returns the log. Idempotent.
--
-- KEYS   none
-- ARGV   1 job id   2 worker   3 its incarnation   4 digest of its weights   5 tokens of the prompt
--        6 warnings (JSON list)   7 lease in ms   8 name of this claim
-- reply  {'claimed', attempt, entries of the log, ms that the job may still run, or -1 without a limit}
--        {'refused', reason}
--            'gone'         no such job
--            'terminal'     the job has ended
--            'running'      another claim holds the job
--            'waiting'      the job is not dispatched: another message will come for it
--            'overdue'      a time limit had passed, and the job has ended now
--            'damaged'      the job's record is damaged, and the job has failed now
--            'superseded', 'digest'    the worker's weights are not the job's: see refuse_wrong_weights

write_even_if_full()
local id, worker, incarnation, digest, prompt_tokens, warnings, lease_ms, claim = unpack(ARGV, 1, 8)
local status, checkpoint, created_at, attempt, tokens, held_by, known_warnings = get_fields(
  id, 'status', 'checkpoint', 'created_at', 'attempt', 'tokens', 'claim', 'warnings')

-- Returns the texts of a JSON list, followed by those of another one that it lacks, as a JSON list.
local function merge_lists(first, second)
  local merged, seen = cjson.decode(first), {}
  for _, text in ipairs(merged) do
    seen[text] = true
  end
  for _, text in ipairs(cjson.decode(second)) do
    if not seen[text] then
      table.insert(merged, text)
    end
  end
  -- cjson would encode an empty table as an object.
  return #merged > 0 and cjson.encode(merged) or '[]'
end

-- Returns the reply for the claim that holds the job. A limit that has passed leaves 0 ms, which is not `no limit`.
local function claimed()
  local left = time_left(id)
  return {
    'claimed', tonumber(attempt), redis.call('XRANGE', KEY.tokens(id), '-', '+'), left and math.max(0, left) or -1}
end

if not status then
  return {'refused', 'gone'}
end
if is_terminal(status) then
  return {'refused', 'terminal'}
end
if status == 'running' then
  if held_by == claim then
    return claimed()
  end
  return {'refused', 'running'}
end
local damaged = damaged_fields(id)
if #damaged > 0 then
  fail_damaged(id, damaged)
  dispatch(get_fields(id, 'checkpoint'))
  return {'refused', 'damaged'}
end
if not redis.call('ZSCORE', KEY.dispatched(checkpoint), id) then
  return {'refused', 'waiting'}
end
-- What the log holds is what the worker continues from.
tokens = log_length(id)
local wrong = refuse_wrong_weights(id, digest)
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
set_fields(id, 'status', 'running', 'attempt', attempt, 'worker', worker, 'incarnation', incarnation, 'claim', claim,
  'attempt_started_at', NOW_MS, 'prompt_tokens', prompt_tokens, 'tokens', tokens, 'resumed_tokens', tokens,
  'warnings', merge_lists(known_warnings, warnings))
redis.call('HSETNX', KEY.job(id), 'started_at', NOW_MS)
redis.call('ZADD', KEY.running(checkpoint), NOW_MS + lease_ms, id)
add_to_worker(id, worker)
note_claim(id, worker, attempt, created_at)
redis.call('ZREM', KEY.jobs_with('queued'), id)
redis.call('ZADD', KEY.jobs_with('running'), created_at, id)
if attempt > 1 then
  redis.call('XADD', KEY.tokens(id), next_mark_id(id, tokens), 'attempt', attempt)
end
notify_state(id)
dispatch(checkpoint)
return claimed()
