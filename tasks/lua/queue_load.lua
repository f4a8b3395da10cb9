-- Reads what an estimate of a checkpoint's queue goes by.
--
-- KEYS   none
-- ARGV   1 checkpoint
-- reply  {jobs that wait; tokens that they may generate; jobs that run; slots of the live workers; ms to the first
--        token, ms for each further one, share of `max_tokens` that is generated, each or ''; real over predicted
--        durations of the last jobs}

local checkpoint = ARGV[1]
local slots = 0
for _, of_worker in ipairs(slots_serving(checkpoint)) do
  slots = slots + of_worker
end
local first_token_ms, ms_per_token, share = unpack(redis.call(
  'HMGET', KEY.pace(checkpoint), 'first_token_ms', 'ms_per_token', 'share'))
return {
  redis.call('ZCARD', KEY.backlog(checkpoint)) + redis.call('ZCARD', KEY.dispatched(checkpoint)),
  tonumber(redis.call('GET', KEY.waiting_tokens(checkpoint)) or 0),
  redis.call('ZCARD', KEY.running(checkpoint)),
  slots,
  first_token_ms or '',
  ms_per_token or '',
  share or '',
  redis.call('LRANGE', KEY.accuracy(checkpoint), 0, -1),
}
