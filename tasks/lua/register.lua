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

local name, incarnation, checkpoint, digest, card, ttl_ms = unpack(ARGV, 1, 6)

for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEY.workers(checkpoint), '(' .. format_int(NOW_MS), '+inf')) do
  local served = other ~= name and redis.pcall('HGET', KEY.worker(other), 'digest')
  if type(served) == 'string' and served ~= digest then
    return {'conflict', served}
  end
end

repair_key(KEY.card(checkpoint), 'hash')
repair_key(KEY.worker(name), 'hash')
redis.call('HSET', KEY.card(checkpoint), 'card', card, 'digest', digest)
redis.call('SADD', KEY.CHECKPOINTS, checkpoint)

-- Returns a job that an earlier run under the name still holds to the backlog. Returns 1 if it did, else 0.
local function reclaim(id, served)
  local holder, run = get_fields(id, 'worker', 'incarnation')
  if holder ~= name or run == incarnation then
    return 0
  end
  return return_lost(id, served) and 1 or 0
end

local earlier = redis.call('HGET', KEY.worker(name), 'incarnation')
local taken = 0
if earlier ~= incarnation then
  redis.call('DEL', KEY.worker(name))
  -- The earlier run may have served another checkpoint.
  for _, served in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
    redis.call('ZREM', KEY.workers(served), name)
    for _, id in ipairs(redis.call('ZRANGE', KEY.running(served), 0, -1)) do
      taken = taken + (guard(id, reclaim, served) or 0)
    end
    if served ~= checkpoint then
      dispatch(served)
    end
  end
end
store_heartbeat(name, checkpoint, ttl_ms, {unpack(ARGV, 7)})
if taken > 0 or (earlier and earlier ~= incarnation) then
  -- Messages that the earlier run took without a claim.
  push_missing_messages(checkpoint, NOW_US)
end
dispatch(checkpoint)
return {'ok', taken}
