-- Appends the last tokens of a running job and ends it. Idempotent.
--
-- KEYS   none
-- ARGV   1 to 7 as in append.lua
--        8 JSON list with one text that belongs to no token and ends the log, or ''
--        9 packed log-probabilities of the stop token that ended the text, or ''
--        10 status   11 finish_reason   12 completion   13 error (JSON), or ''
--        14 tokens that the worker had when it was notified of a cancel, or '' if it was not
--        15.. field, value, ... of the record
-- reply  as in append.lua; the last two numbers of {'ok', ...} are always 0

write_even_if_full()
local id, attempt, before, ids, pieces, logprobs, prompt_logprobs, tail, stop_logprobs, status, finish_reason,
  completion, failure, known = unpack(ARGV, 1, 14)
local from, current, length = get_fields(id, 'status', 'attempt', 'tokens')

if current ~= attempt then
  return {'fenced'}
end
length = tonumber(length)
if from ~= 'running' then
  -- The same end, sent again because the first reply was lost.
  if from == status then
    return {'ok', length, 0, 0}
  end
  return {'fenced'}
end
local after = append_tokens(id, length, tonumber(before), ids, pieces, logprobs, prompt_logprobs)
if not after then
  return {'gap', length}
end
if after == 0 then
  append_prompt_logprobs(id, prompt_logprobs)
end
local last = {}
if tail ~= '' then
  last = {'pieces', tail}
end
if stop_logprobs ~= '' then
  table.insert(last, 'stop_logprobs')
  table.insert(last, stop_logprobs)
end
if #last > 0 then
  redis.call('XADD', KEY.tokens(id), next_mark_id(id, format_int(after)), unpack(last))
end
if #ARGV > 14 then
  redis.call('HSET', KEY.job(id), unpack(ARGV, 15))
end
finish(id, {status = status, finish_reason = finish_reason, completion = completion, error = failure ~= '' and failure,
  cancel_tokens = tonumber(known)})
return {'ok', after, 0, 0}
