-- Deletes a job in any state, with its prompt and its text. Only its id is kept for a while. The worker of a running
-- job is asked to stop it, and what that worker sends afterwards is refused. Idempotent.
--
-- KEYS   none
-- ARGV   1 job id   2 shortest time in ms for which the id is kept
-- reply  1, or 0: there is no such job

write_even_if_full()
local id, keep_id_ms = unpack(ARGV, 1, 2)
local status, checkpoint, worker, result_ttl, key_hash, key_ttl, reply_to = get_fields(
  id, 'status', 'checkpoint', 'worker', 'result_ttl_ms', 'idempotency', 'idempotency_ttl_ms', 'reply_to')

if not status then
  return redis.call('EXISTS', KEY.deleted(id))
end
leave_queue(id, checkpoint)
release_memory(id)
redis.call('ZREM', KEY.JOBS, id)
redis.call('ZREM', KEY.jobs_with(status), id)
redis.call('ZREM', KEY.EXPIRIES, id)
redis.call('DEL', KEY.job(id), KEY.tokens(id))
redis.call('SET', KEY.deleted(id), '', 'PX', math.max(keep_id_ms, result_ttl))
if key_hash then
  redis.call('PEXPIRE', KEY.idempotency(key_hash), key_ttl)
end
prune_listing()
notify_state(id)
notify_submitter(id, reply_to)
if status == 'running' then
  notify_worker(id, worker)
end
dispatch(checkpoint)
return 1
