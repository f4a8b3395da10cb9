-- Fails a waiting job that no worker of its checkpoint can run.
--
-- KEYS   none
-- ARGV   1 job id   2 digest of the worker's weights   3 the job's error (JSON)
-- reply  1, or 0: the job does not wait, or the worker's weights are not the job's (see refuse_wrong_weights)

write_even_if_full()
local id, digest, failure = unpack(ARGV, 1, 3)

if get_fields(id, 'status') ~= 'queued' or refuse_wrong_weights(id, digest) then
  return 0
end
finish_failed(id, failure)
return 1
