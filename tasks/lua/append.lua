-- Appends tokens to the log of a running job. Idempotent.
--
-- KEYS   none
-- ARGV   1 job id   2 attempt   3 length of the log that the sender assumes, in tokens
--        4 token ids, separated by spaces   5 JSON list with one text for each token
--        6 packed log-probabilities of these tokens, or ''   7 those of the prompt, or ''
-- reply  {'ok', new length of the log, 1 if a cancel was requested, else 0, subscribers notified of the new tokens}
--        {'gap', length of the log}    tokens are missing: the sender must send again from this length
--        {'fenced'}                    this attempt does not hold the job

write_even_if_full()
local id, attempt, before, ids, pieces, logprobs, prompt_logprobs = unpack(ARGV, 1, 7)
local status, current, length, requested_at = get_fields(id, 'status', 'attempt', 'tokens', 'cancel_requested_at')

if status ~= 'running' or current ~= attempt then
  return {'fenced'}
end
length = tonumber(length)
local after = append_tokens(id, length, tonumber(before), ids, pieces, logprobs, prompt_logprobs)
if not after then
  return {'gap', length}
end
local subscribers = 0
if after > length then
  redis.call('HINCRBY', KEY.job(id), 'version', 1)
  subscribers = notify_tokens(id)
end
return {'ok', after, requested_at and 1 or 0, subscribers}
