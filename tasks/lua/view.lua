-- Reads a job.
--
-- KEYS   none
-- ARGV   1 job id
-- reply  {record as field, value, ...; number of jobs ahead of it, or -1 if it does not wait; job id}, or nil: no such job

return view(ARGV[1])
