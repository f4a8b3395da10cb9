-- Appends the last tokens of a running job and ends it. Idempotent.
--
-- KEYS   none
-- ARGV   1 to 5 as in append.lua
--        6 JSON list with one text that belongs to no token and ends the log, or ''
--        7 status   8 finish_reason   9 completion   10 error (JSON), or ''
--        11 tokens that the worker had when it was notified of a cancel, or '' if it was not
-- reply  as in append.lua; the last two numbers of {'ok', ...} are always 0

write_even_if_full()
local id, attempt, before, ids, pieces, tail, status, finish_reason, completion, failure, known = unpack(ARGV, 1, 11)
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
local after = append_tokens(id, length, tonumber(before), ids, pieces)
if not after then
  return {'gap', length}
end
if tail ~= '' then
  redis.call('XADD', KEY.tokens(id), next_mark_id(id, format_int(after)), 'pieces', tail)
end
finish(id, {status = status, finish_reason = finish_reason, completion = completion, error = failure ~= '' and failure,
  cancel_tokens = tonumber(known)})
return {'ok', after, 0, 0}
