-- Deletes a job, with its prompt and its text, whatever its state. What stays is that there was one. A worker that runs it
-- is told to stop, and whatever it still sends is refused. Sent twice it acts once.
--
-- KEYS   none
-- ARGV   1 job id   2 ms for which its id is remembered, at least
-- reply  1, or 0: there is no such job

local id, remember_ms = unpack(ARGV, 1, 2)
local status, checkpoint, worker, result_ttl, key_hash, key_ttl, reply_to = read(
  id, 'status', 'checkpoint', 'worker', 'result_ttl_ms', 'idempotency', 'idempotency_ttl_ms', 'reply_to')

if not status then
  return redis.call('EXISTS', KEY.deleted(id))
end
leave_queue(id, checkpoint)
redis.call('ZREM', KEY.JOBS, id)
redis.call('ZREM', KEY.jobs_with(status), id)
redis.call('ZREM', KEY.EXPIRIES, id)
redis.call('DEL', KEY.job(id), KEY.tokens(id))
redis.call('SET', KEY.deleted(id), '', 'PX', math.max(remember_ms, result_ttl))
if key_hash then
  redis.call('PEXPIRE', KEY.idempotency(key_hash), key_ttl)
end
tidy()
notify_state(id)
reply(id, reply_to)
if status == 'running' then
  redis.call('PUBLISH', KEY.worker_channel(worker), id)
end
dispatch(checkpoint)
return 1
