-- Reads the versions and positions of many jobs. A job has changed if its version is higher than before.
--
-- KEYS   none
-- ARGV   1.. job ids
-- reply  for each job {version; number of jobs ahead of it, or -1 if it does not wait}, or nil: no such job

local function version_of(id)
  local version, checkpoint, status = get_fields(id, 'version', 'checkpoint', 'status')
  return version and {finite(version) or 0, position(id, checkpoint, status)}
end

local versions = {}
for index, id in ipairs(ARGV) do
  versions[index] = guard(id, version_of) or false
end
return versions
