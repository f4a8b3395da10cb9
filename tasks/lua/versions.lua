-- Tells of many jobs whether they have changed, and where they stand.
--
-- KEYS   none
-- ARGV   1.. job ids
-- reply  for each {version; jobs ahead of it, or -1 where it does not wait}, or nil: no such job

local seen = {}
for index, id in ipairs(ARGV) do
  local version, checkpoint, status = read(id, 'version', 'checkpoint', 'status')
  seen[index] = version and {tonumber(version), position(id, checkpoint, status)}
end
return seen
