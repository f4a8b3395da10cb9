-- Mends what makes a script fail each time it is called: keys of the queue with a wrong type, or a damaged record.
--
-- KEYS   none
-- ARGV   1 job id, or ''   2 1 to end the job as failed even if its record looks usable, else 0
--        3.. fields of the record that the caller cannot read; `log` for the job's log
-- reply  {1 if keys with a wrong type were deleted, else 0; 1 if the job was ended or its record was changed, else 0}

write_even_if_full()
local id, force = unpack(ARGV, 1, 2)
local repaired, changed = repair_shared_keys(), 0
for _, checkpoint in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
  repaired = repaired + repair_keys_of(checkpoint)
end
local names = id ~= '' and damaged_fields(id)

if names then
  local known = {}
  for _, name in ipairs(names) do
    known[name] = true
  end
  for index = 3, #ARGV do
    if not known[ARGV[index]] then
      table.insert(names, ARGV[index])
    end
  end
  if #names > 0 or force == '1' then
    fail_damaged(id, names)
    changed = 1
  end
end
return {repaired > 0 and 1 or 0, changed}
