-- Stores the heartbeat of a registered worker.
--
-- KEYS   none
-- ARGV   1 worker   2 checkpoint   3 digest   4 ms until the worker counts as gone
--        5.. field, value, ... of the worker's hash
-- reply  {'ok'}
--        {'unknown'}             Redis has no card of the checkpoint: it lost its data, the worker must register again
--        {'conflict', digest}    the checkpoint's card now has these weights: the worker was gone for too long

write_even_if_full()
local name, checkpoint, digest, ttl_ms = unpack(ARGV, 1, 4)
local served = redis.call('HGET', KEY.card(checkpoint), 'digest')

if not served then
  return {'unknown'}
end
if served ~= digest then
  return {'conflict', served}
end
store_heartbeat(name, checkpoint, ttl_ms, {unpack(ARGV, 5)})
dispatch(checkpoint)
return {'ok'}
