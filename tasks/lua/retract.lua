-- Ends all offers of a switching worker that stops. Jobs that wait for them go on waiting.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation
-- reply  1, or 0: this incarnation is not registered under the name

write_even_if_full()
local name, incarnation = unpack(ARGV, 1, 2)
repair_key(KEY.switching_worker(name), 'hash')

if redis.call('HGET', KEY.switching_worker(name), 'incarnation') ~= incarnation then
  return 0
end
end_switching(name)
return 1
