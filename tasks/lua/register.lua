-- Registers a worker and publishes its checkpoint's card.
--
-- A later run under the same name replaces the earlier run. Jobs that the earlier run still holds return to the head of
-- the backlog at once, before their leases expire. That counts as a loss for each: a run that stops in an orderly way
-- releases its jobs before its name can be taken, so a run that still holds jobs has crashed.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint   4 digest   5 card (JSON)   6 ms until the worker counts as gone
--        7.. field, value, ... of the worker's hash
-- reply  {'ok', jobs taken from the earlier run}
--        {'conflict', digest}    another live worker serves these weights under the checkpoint's name

write_even_if_full()
local name, incarnation, checkpoint, digest, card, ttl_ms = unpack(ARGV, 1, 6)

-- Returns the digest that another live worker serves under the checkpoint's name; nil if there is no such worker. All live
-- workers of a checkpoint have the digest of its card, because `register` and `heartbeat` refuse others.
local function digest_of_others()
  local live = redis.call(
    'ZRANGEBYSCORE', KEY.workers(checkpoint), '(' .. format_int(NOW_MS), '+inf', 'LIMIT', 0, 2)
  for _, other in ipairs(live) do
    if other ~= name then
      return redis.call('HGET', KEY.card(checkpoint), 'digest') or redis.call('HGET', KEY.worker(other), 'digest')
    end
  end
end

-- Takes the jobs that an earlier run still holds. Returns how many.
local function take_jobs()
  local taken, dispatchable = 0, {}
  for _, id in ipairs(redis.call('SMEMBERS', KEY.worker_jobs(name))) do
    local status, holder, run, served = get_fields(id, 'status', 'worker', 'incarnation', 'checkpoint')
    if status ~= 'running' or holder ~= name then
      redis.call('SREM', KEY.worker_jobs(name), id)
    elseif run ~= incarnation then
      return_to_backlog(id, true)
      taken, dispatchable[served] = taken + 1, true
    end
  end
  -- The earlier run may have served another checkpoint.
  for served in pairs(dispatchable) do
    if served ~= checkpoint then
      dispatch(served)
    end
  end
  return taken
end

local served = digest_of_others()
if served and served ~= digest then
  return {'conflict', served}
end

redis.call('HSET', KEY.card(checkpoint), 'card', card, 'digest', digest)
redis.call('SADD', KEY.CHECKPOINTS, checkpoint)

local earlier, earlier_checkpoint = unpack(redis.call('HMGET', KEY.worker(name), 'incarnation', 'checkpoint'))
if earlier_checkpoint and earlier_checkpoint ~= checkpoint then
  remove_worker(earlier_checkpoint, name)
end
local taken = 0
if earlier ~= incarnation then
  redis.call('DEL', KEY.worker(name))
  taken = take_jobs()
end
store_heartbeat(name, checkpoint, ttl_ms, {unpack(ARGV, 7)})
if taken > 0 or (earlier and earlier ~= incarnation) then
  -- Messages that the earlier run took without a claim.
  push_missing_messages(checkpoint, NOW_US)
end
dispatch(checkpoint)
return {'ok', taken}
