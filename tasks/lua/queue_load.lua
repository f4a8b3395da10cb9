-- Reads the data about a checkpoint's queue from which estimates are made.
--
-- KEYS   none
-- ARGV   1 checkpoint
-- reply  {waiting jobs; tokens that they may generate; running jobs; slots of the live workers that take jobs, or of the
--        worker that will load the checkpoint; average ms to the first token, average ms for each further token, average
--        share of `max_tokens` that jobs generate, each or '' if not known; ms until a worker will have loaded the
--        checkpoint, from the time at which one begins, or '' if a worker takes jobs, or if none offers the checkpoint;
--        ratios of real to predicted duration of the last jobs}

local checkpoint = ARGV[1]
local slots, load_ms = live_counts(checkpoint).slots, nil
if slots == 0 then
  slots, load_ms = future_load(checkpoint)
end
local first_token_ms, ms_per_token, share = unpack(redis.call(
  'HMGET', KEY.pace(checkpoint), 'first_token_ms', 'ms_per_token', 'share'))
local ratios = {}
for _, ratio in ipairs(redis.call('LRANGE', KEY.accuracy(checkpoint), 0, -1)) do
  if finite(ratio) then
    table.insert(ratios, ratio)
  end
end
return {
  redis.call('ZCARD', KEY.backlog(checkpoint)) + redis.call('ZCARD', KEY.dispatched(checkpoint)),
  finite(redis.call('GET', KEY.waiting_tokens(checkpoint))) or 0,
  redis.call('ZCARD', KEY.running(checkpoint)),
  slots,
  finite(first_token_ms) and first_token_ms or '',
  finite(ms_per_token) and ms_per_token or '',
  finite(share) and share or '',
  load_ms and format_int(load_ms) or '',
  ratios,
}
