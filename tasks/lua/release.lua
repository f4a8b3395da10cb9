-- Releases a running job: it returns to the head of the backlog, with its tokens. It ends instead if a cancel was
-- requested, if it has too many losses, or if a time limit has passed.
--
-- KEYS   none
-- ARGV   1 job id   2 attempt   3 1 to count a loss, else 0
--        4 error (JSON) of a job with too many losses
-- reply  1, or 0: this attempt does not hold the job

write_even_if_full()
local id, attempt, lost, failure = unpack(ARGV, 1, 4)
local status, current, checkpoint = get_fields(id, 'status', 'attempt', 'checkpoint')

if status ~= 'running' or current ~= attempt then
  return 0
end
return_to_backlog(id, lost == '1', failure)
dispatch(checkpoint)
return 1
