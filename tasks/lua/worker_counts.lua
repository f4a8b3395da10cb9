-- Reads what the live workers of each checkpoint do, without a walk over them.
--
-- KEYS   none
-- ARGV   none
-- reply  for each checkpoint with a live worker {checkpoint; workers that take jobs; their slots; running jobs; workers
--        that replace a crashed engine; workers that load the checkpoint for the first time; stalled workers}

local found = {}
for _, checkpoint in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
  local counts = live_counts(checkpoint)
  local live = counts.serving + counts.reloading + counts.starting + counts.stalled
  if live > 0 then
    table.insert(found, {checkpoint, counts.serving, counts.slots, redis.call('ZCARD', KEY.running(checkpoint)),
      counts.reloading, counts.starting, counts.stalled})
  end
end
return found
