-- Enters a worker and publishes its checkpoint's card.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint   4 digest   5 card (JSON)   6 ms until the worker counts as gone
--        7.. field, value, ... of the worker's hash
-- reply  {'ok'}
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
if redis.call('HGET', KEY.worker(name), 'incarnation') ~= incarnation then
  redis.call('DEL', KEY.worker(name))
end
announce(name, checkpoint, ttl_ms, {unpack(ARGV, 7)})
return {'ok'}
