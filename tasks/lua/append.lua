-- Appends tokens to the log of a running job. Sent twice it acts once.
--
-- KEYS   none
-- ARGV   1 job id   2 attempt   3 tokens that the sender believes the log to hold   4 token ids, separated by spaces
--        5 JSON list of one piece of text for each
-- reply  {'ok', length of the log now, 1 where a cancel was asked for, else 0, how many heard of the new tokens}
--        {'gap', length of the log}    the sender is to send from there
--        {'fenced'}                    the job is not this attempt's (any more)

local id, attempt, before, ids, pieces = unpack(ARGV, 1, 5)
local status, current, length, requested_at = read(id, 'status', 'attempt', 'tokens', 'cancel_requested_at')

if status ~= 'running' or current ~= attempt then
  return {'fenced'}
end
length = tonumber(length)
local after = append_tokens(id, length, tonumber(before), ids, pieces)
if not after then
  return {'gap', length}
end
local listeners = 0
if after > length then
  redis.call('HINCRBY', KEY.job(id), 'version', 1)
  listeners = notify_tokens(id)
end
return {'ok', after, requested_at and 1 or 0, listeners}
