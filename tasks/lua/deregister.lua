-- Removes a worker that stops. A later run under the same name stays registered.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint
-- reply  1, or 0: this incarnation is not registered under the name

write_even_if_full()
local name, incarnation, checkpoint = unpack(ARGV, 1, 3)

if redis.call('HGET', KEY.worker(name), 'incarnation') ~= incarnation then
  return 0
end
redis.call('DEL', KEY.worker(name))
remove_worker(checkpoint, name)
-- No worker ever loaded the checkpoint.
if redis.call('EXISTS', KEY.card(checkpoint), KEY.workers(checkpoint)) == 0 then
  redis.call('SREM', KEY.CHECKPOINTS, checkpoint)
end
dispatch(checkpoint)
return 1
