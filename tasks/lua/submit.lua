-- Accepts a job: checks its idempotency key and the queue's limits, writes the record with the Celery message, adds the
-- job to the backlog and dispatches. Idempotent.
--
-- KEYS   none
-- ARGV   1 job id   2 checkpoint   3 priority   4 largest number of jobs that may wait for the checkpoint
--        5 largest number of jobs that may be ahead of this one, or ''
--        6 hash of the idempotency key, or ''   7 fingerprint of the request, or ''
--        8.. field, value, ... of the record
-- reply  {'created', job id}     the job waits
--        {'replayed', job id}    an earlier request with this key and the same content created this job
--        {'mismatch', job id}    an earlier request with this key and other content created this job
--        {'gone', job id, reason}    an earlier request with this key and the same content created this job, and its
--            record is 'deleted' or 'expired'
--        {'full'}                too many jobs wait
--        {'far', jobs ahead}     too many jobs are ahead
--        {'memory', ms}          Redis lacks memory for the job; ms until a finished job expires, or -1 if none is kept

local id, checkpoint, priority, limit, most_ahead, key_hash, fingerprint = unpack(ARGV, 1, 7)

if redis.call('EXISTS', KEY.job(id)) == 1 then
  return {'created', id}
end
if key_hash ~= '' then
  local prior = find_prior(key_hash, fingerprint)
  if prior then
    return prior
  end
end
local waiting = redis.call('ZCARD', KEY.backlog(checkpoint)) + redis.call('ZCARD', KEY.dispatched(checkpoint))
if waiting >= tonumber(limit) then
  return {'full'}
end

local score = new_score(priority)
if most_ahead ~= '' then
  local ahead = redis.call('ZCARD', KEY.dispatched(checkpoint))
    + redis.call('ZCOUNT', KEY.backlog(checkpoint), '-inf', format_int(score))
  if ahead > tonumber(most_ahead) then
    return {'far', ahead}
  end
end

local record, record_bytes = {unpack(ARGV, 8)}, 0
local reserve = LIMIT.RESERVE_PER_JOB
for index = 1, #record, 2 do
  record_bytes = record_bytes + #record[index] + #record[index + 1]
  if record[index] == 'max_tokens' then
    reserve = reserve + LIMIT.RESERVE_PER_TOKEN * record[index + 1]
  end
end
local expiry_ms = admission_refusal(record_bytes, reserve)
if expiry_ms then
  return {'memory', expiry_ms}
end

redis.call('HSET', KEY.job(id), 'id', id, 'checkpoint', checkpoint, 'priority', priority, 'status', 'queued',
  'version', 1, 'created_at', NOW_MS, 'score', format_int(score), 'attempt', 0, 'losses', 0, 'losses_in_a_row', 0,
  'resumed_tokens', 0, 'tokens', 0, 'run_ms', 0, unpack(record))
reserve_memory(id, reserve)
local deadline_ms = get_fields(id, 'deadline_ms')
if deadline_ms then
  redis.call('HSET', KEY.job(id), 'deadline_at', NOW_MS + deadline_ms)
end
if key_hash ~= '' then
  redis.call('SET', KEY.idempotency(key_hash), id .. ' ' .. fingerprint)
end
redis.call('ZADD', KEY.JOBS, NOW_MS, id)
redis.call('ZADD', KEY.jobs_with('queued'), NOW_MS, id)
enter_queue(id, checkpoint, score)
prune_listing()
dispatch(checkpoint)
return {'created', id}
