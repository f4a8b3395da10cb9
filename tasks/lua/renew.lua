-- Renews the leases of a worker's jobs.
--
-- KEYS   none
-- ARGV   1 lease in ms   2.. job id, attempt, ...
-- reply  {jobs that these attempts do not hold, jobs with a cancel request}

write_even_if_full()
local lost, cancelled = {}, {}

-- Renews one lease. Returns true if the attempt holds the job.
local function renew(id, attempt)
  local status, current, checkpoint, requested_at = get_fields(
    id, 'status', 'attempt', 'checkpoint', 'cancel_requested_at')
  if status ~= 'running' or current ~= attempt then
    return false
  end
  -- Only a lease that exists. If it was lost, or the record names a wrong checkpoint, the reaper corrects that.
  redis.call('ZADD', KEY.running(checkpoint), 'XX', NOW_MS + ARGV[1], id)
  if requested_at then
    table.insert(cancelled, id)
  end
  return true
end

for index = 2, #ARGV, 2 do
  if not guard(ARGV[index], renew, ARGV[index + 1]) then
    table.insert(lost, ARGV[index])
  end
end
return {lost, cancelled}
