-- Finds the job that an earlier request with an idempotency key created.
--
-- KEYS   none
-- ARGV   1 hash of the idempotency key   2 fingerprint of the request
-- reply  as in submit.lua: {'replayed', job id}, {'mismatch', job id} or {'gone', job id, reason}; nil: no earlier request

return find_prior(ARGV[1], ARGV[2])
