-- Reads which checkpoints are served now, without a walk over their workers.
--
-- KEYS   none
-- ARGV   none
-- reply  for each checkpoint with a live worker that takes jobs {checkpoint; number of such workers; their slots; running
--        jobs}

local serving = {}
for _, checkpoint in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
  local workers, slots = live_capacity(checkpoint)
  if workers > 0 then
    table.insert(serving, {checkpoint, workers, slots, redis.call('ZCARD', KEY.running(checkpoint))})
  end
end
return serving
