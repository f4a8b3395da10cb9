-- Reads what is new of a job for somebody who follows it.
--
-- KEYS   none
-- ARGV   1 job id   2 the cursor, `<tokens>-<k>`: entries behind it are wanted
-- reply  {status; attempt; jobs ahead of it, or -1 where it does not wait; entries of the log; once it is over, the
--        record as field, value, ...}, or nil: no such job

local id, cursor = unpack(ARGV, 1, 2)
local status, attempt, checkpoint = read(id, 'status', 'attempt', 'checkpoint')

if not status then
  return false
end
local entries = redis.call('XRANGE', KEY.tokens(id), '(' .. cursor, '+')
local record = is_terminal(status) and redis.call('HGETALL', KEY.job(id)) or {}
return {status, tonumber(attempt), position(id, checkpoint, status), entries, record}
