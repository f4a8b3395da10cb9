-- Enters a worker and publishes its checkpoint's card.
--
-- A run under the name of an earlier one takes its place: the jobs that the earlier run holds wait at the head of the
-- backlog at once, instead of until their leases are over. That counts as a loss for each. A run that stops in good order
-- hands its jobs back before its name can be taken, so one that still holds some has died with them.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint   4 digest   5 card (JSON)   6 ms until the worker counts as gone
--        7.. field, value, ... of the worker's hash
-- reply  {'ok', jobs that were taken from the earlier run}
--        {'conflict', digest}    another live worker serves the checkpoint's name with these weights

local name, incarnation, checkpoint, digest, card, ttl_ms = unpack(ARGV, 1, 6)

for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEY.workers(checkpoint), '(' .. int(NOW_MS), '+inf')) do
  local served = other ~= name and redis.call('HGET', KEY.worker(other), 'digest')
  if served and served ~= digest then
    return {'conflict', served}
  end
end

redis.call('HSET', KEY.card(checkpoint), 'card', card, 'digest', digest)
redis.call('SADD', KEY.CHECKPOINTS, checkpoint)

local earlier = redis.call('HGET', KEY.worker(name), 'incarnation')
local taken = 0
if earlier ~= incarnation then
  redis.call('DEL', KEY.worker(name))
  -- The earlier run may have served another checkpoint.
  for _, served in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
    redis.call('ZREM', KEY.workers(served), name)
    for _, id in ipairs(redis.call('ZRANGE', KEY.running(served), 0, -1)) do
      local holder, run = read(id, 'worker', 'incarnation')
      if holder == name and run ~= incarnation then
        return_to_backlog(id, true)
        taken = taken + 1
      end
    end
    if served ~= checkpoint then
      dispatch(served)
    end
  end
end
announce(name, checkpoint, ttl_ms, {unpack(ARGV, 7)})
if taken > 0 or (earlier and earlier ~= incarnation) then
  -- What the earlier run had taken and not begun.
  push_again(checkpoint, NOW_US)
end
dispatch(checkpoint)
return {'ok', taken}
