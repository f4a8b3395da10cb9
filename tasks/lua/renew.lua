-- Renews the leases of a worker's jobs.
--
-- KEYS   none
-- ARGV   1 lease in ms   2.. job id, attempt, ...
-- reply  {jobs that these attempts do not hold, jobs with a cancel request}

write_even_if_full()
local lost, cancelled = {}, {}
for index = 2, #ARGV, 2 do
  local id, attempt = ARGV[index], ARGV[index + 1]
  local status, current, checkpoint, requested_at = get_fields(
    id, 'status', 'attempt', 'checkpoint', 'cancel_requested_at')
  if status ~= 'running' or current ~= attempt then
    table.insert(lost, id)
  else
    redis.call('ZADD', KEY.running(checkpoint), NOW_MS + ARGV[1], id)
    if requested_at then
      table.insert(cancelled, id)
    end
  end
end
return {lost, cancelled}
