-- Reads what is new of a job for somebody who follows it.
--
-- KEYS   none
-- ARGV   1 job id   2 the cursor, `<tokens>-<k>`: entries behind it are wanted
-- reply  {status; attempt; its worker, or ''; jobs ahead of it, or -1 where it does not wait; entries of the log; once it is over, the id
--        behind every entry's, and the record as field, value, ...}, or nil: no such job

local id, cursor = unpack(ARGV, 1, 2)
local status, attempt, worker, checkpoint, tokens = read(id, 'status', 'attempt', 'worker', 'checkpoint', 'tokens')

if not status then
  return false
end
local entries = redis.call('XRANGE', KEY.tokens(id), '(' .. cursor, '+')
local news = {status, tonumber(attempt), worker or '', position(id, checkpoint, status), entries}
if is_terminal(status) then
  news[6], news[7] = next_mark(id, tokens), redis.call('HGETALL', KEY.job(id))
end
return news
