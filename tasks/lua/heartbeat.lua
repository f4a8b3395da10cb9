-- Stores the heartbeat of a registered worker.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint   4 digest   5 ms until the worker counts as gone
--        6.. field, value, ... of the worker's hash
-- reply  {'ok'}
--        {'unknown'}             Redis has no card of the checkpoint: it lost its data, the worker must register again
--        {'conflict', digest}    the checkpoint's card now has these weights: the worker was gone for too long
--        {'replaced'}            a later run registered under the worker's name

write_even_if_full()
local name, incarnation, checkpoint, digest, ttl_ms = unpack(ARGV, 1, 5)
local served = redis.call('HGET', KEY.card(checkpoint), 'digest')

if not served then
  return {'unknown'}
end
if served ~= digest then
  return {'conflict', served}
end
local registered = redis.call('HGET', KEY.worker(name), 'incarnation')
if registered and registered ~= incarnation then
  return {'replaced'}
end
-- The reaper dispatches each second in any case.
if store_heartbeat(name, checkpoint, ttl_ms, {unpack(ARGV, 6)}) then
  dispatch(checkpoint)
end
return {'ok'}
