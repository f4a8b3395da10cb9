-- Registers a worker and publishes its checkpoint's card.
--
-- A worker that still loads its checkpoint calls this without a card each second, and is then listed as `starting`. Its
-- digest is not known, so it is not compared; and while an earlier run under its name is listed, nothing happens.
--
-- A later run under the same name replaces the earlier run. Jobs that the earlier run still holds return to the head of
-- the backlog at once, before their leases expire. That counts as a loss for each: a run that stops in an orderly way
-- releases its jobs before its name can be taken, so a run that still holds jobs has crashed.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint   4 digest, or ''   5 card (JSON), or ''   6 ms until the worker counts as gone
--        7.. field, value, ... of the worker's hash
-- reply  {'ok', jobs taken from the earlier run}
--        {'conflict', digest}    another live worker serves these weights under the checkpoint's name

local name, incarnation, checkpoint, digest, card, ttl_ms = unpack(ARGV, 1, 6)
local earlier = redis.call('HGET', KEY.worker(name), 'incarnation')

if card == '' and earlier and earlier ~= incarnation then
  return {'ok', 0}
end

for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEY.workers(checkpoint), '(' .. format_int(NOW_MS), '+inf')) do
  local served, state = unpack(redis.call('HMGET', KEY.worker(other), 'digest', 'state'))
  -- A worker that loads has no digest, and one that drains claims no more jobs.
  if digest ~= '' and other ~= name and served and served ~= '' and served ~= digest and state ~= 'draining' then
    return {'conflict', served}
  end
end

if card ~= '' then
  redis.call('HSET', KEY.card(checkpoint), 'card', card, 'digest', digest)
end
redis.call('SADD', KEY.CHECKPOINTS, checkpoint)

local taken = 0
if card ~= '' then
  if earlier ~= incarnation then
    redis.call('DEL', KEY.worker(name))
  end
  -- The earlier run may have served another checkpoint.
  for _, served in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
    redis.call('ZREM', KEY.workers(served), name)
    for _, id in ipairs(redis.call('ZRANGE', KEY.running(served), 0, -1)) do
      local holder, run = get_fields(id, 'worker', 'incarnation')
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
store_heartbeat(name, checkpoint, ttl_ms, {unpack(ARGV, 7)})
if taken > 0 or (earlier and earlier ~= incarnation) then
  -- Messages that the earlier run took without a claim.
  push_missing_messages(checkpoint, NOW_US)
end
dispatch(checkpoint)
return {'ok', taken}
