-- Reads what has changed in a job since a cursor, for an event stream.
--
-- KEYS   none
-- ARGV   1 job id   2 cursor, `<tokens>-<k>`: the id of the last entry that the reader has
-- reply  {status; attempt; its worker, or ''; position as in versions.lua; entries of the log after the cursor; only if
--        the job has ended: an entry id after the last entry's, and the record as field, value, ...}
--        nil    no such job

local id, cursor = unpack(ARGV, 1, 2)
local status, attempt, worker, checkpoint, tokens = get_fields(
  id, 'status', 'attempt', 'worker', 'checkpoint', 'tokens')

if not status then
  return false
end
local entries = redis.call('XRANGE', KEY.tokens(id), '(' .. cursor, '+')
local changes = {status, attempt or '', worker or '', position(id, checkpoint, status), entries}
if is_terminal(status) then
  changes[6], changes[7] = next_mark_id(id, tokens), redis.call('HGETALL', KEY.job(id))
end
return changes
