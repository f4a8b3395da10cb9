-- Gives a running job back: it waits at the head of the backlog, with its tokens. One that was asked to stop is
-- cancelled instead; one that was lost too often, or whose time is over, fails.
--
-- KEYS   none
-- ARGV   1 job id   2 attempt
--        3 1 to count a loss, 0 for a hand-over
-- reply  1, or 0: the job is not this attempt's (any more)

local id, attempt, lost = unpack(ARGV, 1, 3)
local status, current, checkpoint = read(id, 'status', 'attempt', 'checkpoint')

if status ~= 'running' or current ~= attempt then
  return 0
end
return_to_backlog(id, lost == '1')
dispatch(checkpoint)
return 1
