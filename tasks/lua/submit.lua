-- Accepts one job, or a group of jobs all or none: checks the idempotency key and the queue's limits, writes the records
-- with their Celery messages, adds the jobs to the backlog and dispatches. Idempotent.
--
-- KEYS   none
-- ARGV   1 checkpoint   2 priority   3 largest number of jobs that may wait for the checkpoint
--        4 largest number of jobs that may be ahead of the first one, or ''
--        5 hash of the idempotency key, or ''   6 fingerprint of the request, or ''
--        then for each job: its id, memory in bytes that it needs beyond its record until its end, the number of the
--        arguments that follow, and field, value, ... of its record
-- reply  {'created', job id}     the jobs wait; the id is that of the first one, as in the next three replies
--        {'replayed', job id}    an earlier request with this key and the same content created this job
--        {'mismatch', job id}    an earlier request with this key and other content created this job
--        {'gone', job id, reason}    an earlier request with this key and the same content created this job, and its
--            record is 'deleted' or 'expired'
--        {'full'}                too many jobs wait
--        {'far', jobs ahead}     too many jobs are ahead
--        {'memory', ms}          Redis lacks memory for the jobs; ms until a finished job expires, or -1 if none is kept

local checkpoint, priority, limit, most_ahead, key_hash, fingerprint = unpack(ARGV, 1, 6)

local jobs, record_bytes, reserved, at = {}, 0, 0, 7
while ARGV[at] do
  local job = {id = ARGV[at], reserve = tonumber(ARGV[at + 1]), fields = {unpack(ARGV, at + 3, at + 2 + ARGV[at + 2])}}
  table.insert(jobs, job)
  for _, value in ipairs(job.fields) do
    record_bytes = record_bytes + #value
  end
  reserved = reserved + job.reserve
  at = at + 3 + #job.fields
end

local first = jobs[1].id
if redis.call('EXISTS', KEY.job(first)) == 1 then
  return {'created', first}
end
if key_hash ~= '' then
  local prior = find_prior(key_hash, fingerprint)
  if prior then
    return prior
  end
end
local waiting = redis.call('ZCARD', KEY.backlog(checkpoint)) + redis.call('ZCARD', KEY.dispatched(checkpoint))
if waiting + #jobs > tonumber(limit) then
  return {'full'}
end

-- The jobs of a group have equal scores. Among those Redis orders by id, and the ids of a group ascend.
local score = new_score(priority)
if most_ahead ~= '' then
  local ahead = redis.call('ZCARD', KEY.dispatched(checkpoint))
    + redis.call('ZCOUNT', KEY.backlog(checkpoint), '-inf', format_int(score))
  if ahead > tonumber(most_ahead) then
    return {'far', ahead}
  end
end
local expiry_ms = admission_refusal(record_bytes, reserved)
if expiry_ms then
  return {'memory', expiry_ms}
end

for _, job in ipairs(jobs) do
  local key = KEY.job(job.id)
  redis.call('HSET', key, 'id', job.id, 'checkpoint', checkpoint, 'priority', priority, 'status', 'queued',
    'version', 1, 'created_at', NOW_MS, 'score', format_int(score), 'attempt', 0, 'losses', 0, 'losses_in_a_row', 0,
    'resumed_tokens', 0, 'tokens', 0, 'run_ms', 0, unpack(job.fields))
  reserve_memory(job.id, job.reserve)
  local deadline_ms = get_fields(job.id, 'deadline_ms')
  if deadline_ms then
    redis.call('HSET', key, 'deadline_at', NOW_MS + deadline_ms)
  end
  redis.call('ZADD', KEY.JOBS, NOW_MS, job.id)
  redis.call('ZADD', KEY.jobs_with('queued'), NOW_MS, job.id)
  enter_queue(job.id, checkpoint, score)
end
if key_hash ~= '' then
  redis.call('SET', KEY.idempotency(key_hash), first .. ' ' .. fingerprint)
end
-- A checkpoint that is only offered is not in this set yet, and the reaper works for those in it.
redis.call('SADD', KEY.CHECKPOINTS, checkpoint)
prune_listing()
dispatch(checkpoint)
notify_switching(checkpoint)
return {'created', first}
