-- Stores the heartbeat of a registered worker.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint   4 digest   5 ms until the worker counts as gone
--        6.. field, value, ... of the worker's hash
-- reply  {'ok'}
--        {'unknown'}             Redis has no card of the checkpoint: it lost its data, the worker must register again
--        {'replaced'}            a later run is registered under the name
--        {'conflict', digest}    the checkpoint's card now has these weights: the worker was gone for too long

write_even_if_full()
local name, incarnation, checkpoint, digest, ttl_ms = unpack(ARGV, 1, 5)
local served = redis.call('HGET', KEY.card(checkpoint), 'digest')

if not served then
  return {'unknown'}
end
-- Returns whether the worker claims no more jobs. It ends those that it runs, whatever the card says by now.
local function is_draining()
  for index = 6, #ARGV, 2 do
    if ARGV[index] == 'state' then
      return ARGV[index + 1] == 'draining'
    end
  end
end

if served ~= digest and not is_draining() then
  return {'conflict', served}
end
local registered = redis.pcall('HGET', KEY.worker(name), 'incarnation')
if type(registered) == 'string' and registered ~= incarnation then
  return {'replaced'}
end
repair_key(KEY.worker(name), 'hash')
repair_key(KEY.worker_jobs(name), 'set')
-- The reaper works for the checkpoints in this set.
redis.call('SADD', KEY.CHECKPOINTS, checkpoint)
-- The reaper dispatches each second in any case.
if store_heartbeat(name, checkpoint, ttl_ms, {unpack(ARGV, 6)}) then
  dispatch(checkpoint)
end
return {'ok'}
