-- Marks an empty Redis with the version of the layout of its keys.
--
-- KEYS   none
-- ARGV   1 version
-- reply  {version that Redis holds now, 1 if Redis held none before, else 0}

local found = redis.pcall('GET', KEY.SCHEMA)
if type(found) == 'table' then
  -- Not a text: no version of this program wrote it.
  return {'unknown', 0}
end

-- Written only if it is missing, so that a Redis that refuses writes can still be read.
if not found then
  redis.call('SET', KEY.SCHEMA, ARGV[1])
end
return {found or ARGV[1], found and 0 or 1}
