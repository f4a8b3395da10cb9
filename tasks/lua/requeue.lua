-- Requeues a dispatched job: a worker took its message but will not claim the job. The job is served next.
--
-- KEYS   none
-- ARGV   1 job id
-- reply  1, or 0: the job is not dispatched

write_even_if_full()
local id = ARGV[1]
local checkpoint = get_fields(id, 'checkpoint')

if not checkpoint or not redis.call('ZSCORE', KEY.dispatched(checkpoint), id) then
  return 0
end
requeue(id)
return 1
