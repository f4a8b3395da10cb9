-- Ends a waiting job that its checkpoint can never run.
--
-- KEYS   none
-- ARGV   1 job id   2 digest of the worker's weights   3 what the job tells (JSON)
-- reply  1, or 0: the job does not wait, or is not for this worker to judge (see wrong_weights)

local id, digest, failure = unpack(ARGV, 1, 3)

if read(id, 'status') ~= 'queued' or wrong_weights(id, digest) then
  return 0
end
finish_failed(id, failure)
return 1
