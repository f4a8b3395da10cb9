-- Reads a job.
--
-- KEYS   none
-- ARGV   1 job id
-- reply  {record as field, value, ...; jobs ahead of it, or -1 where it does not wait}, or nil: no such job

return view(ARGV[1])
