-- Registers a worker and publishes its checkpoint's card.
--
-- A later run under the same name replaces the earlier run. Jobs that the earlier run still holds return to the head of
-- the backlog at once, before their leases expire. That counts as a loss for each: a run that stops in an orderly way
-- releases its jobs before its name can be taken, so a run that still holds jobs has crashed.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint   4 digest   5 card (JSON)   6 ms until the worker counts as gone
--        7.. field, value, ... of the worker's hash
-- reply  {'ok', jobs taken from the earlier run}
--        {'conflict', digest}    another live worker serves these weights under the checkpoint's name

local name, incarnation, checkpoint, digest, card, ttl_ms = unpack(ARGV, 1, 6)

-- Returns the digest of another live worker of the checkpoint that is not this worker's; nil if there is no such worker.
local function other_digest()
  local key = KEY.workers(checkpoint)
  local ends_at = redis.call('ZSCORE', key, name)
  local is_live = ends_at and tonumber(ends_at) > NOW_MS
  local own = is_live and redis.call('HEXISTS', KEY.capacity(checkpoint), 'slots:' .. name) or 0
  local served = redis.call('HGET', KEY.card(checkpoint), 'digest')
  -- All workers that take jobs have the digest of the card, because `register` and `heartbeat` refuse others.
  if served and live_capacity(checkpoint) - own > 0 then
    return served ~= digest and served or nil
  end
  -- None takes jobs, which is rare: look at each.
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. format_int(NOW_MS), '+inf')) do
    local its_digest = other ~= name and redis.call('HGET', KEY.worker(other), 'digest')
    if its_digest and its_digest ~= digest then
      return its_digest
    end
  end
end

-- Takes the jobs that an earlier run still holds. Returns how many.
local function take_jobs()
  local taken, dispatchable = 0, {}
  for _, id in ipairs(redis.call('SMEMBERS', KEY.worker_jobs(name))) do
    local status, holder, run, served = get_fields(id, 'status', 'worker', 'incarnation', 'checkpoint')
    if status ~= 'running' or holder ~= name then
      redis.call('SREM', KEY.worker_jobs(name), id)
    elseif run ~= incarnation then
      return_to_backlog(id, true)
      taken, dispatchable[served] = taken + 1, true
    end
  end
  -- The earlier run may have served another checkpoint.
  for served in pairs(dispatchable) do
    if served ~= checkpoint then
      dispatch(served)
    end
  end
  return taken
end

local served = other_digest()
if served then
  return {'conflict', served}
end

redis.call('HSET', KEY.card(checkpoint), 'card', card, 'digest', digest)
redis.call('SADD', KEY.CHECKPOINTS, checkpoint)

local earlier, earlier_checkpoint = unpack(redis.call('HMGET', KEY.worker(name), 'incarnation', 'checkpoint'))
if earlier_checkpoint and earlier_checkpoint ~= checkpoint then
  remove_worker(earlier_checkpoint, name)
end
local taken = 0
if earlier ~= incarnation then
  redis.call('DEL', KEY.worker(name))
  taken = take_jobs()
end
store_heartbeat(name, checkpoint, ttl_ms, {unpack(ARGV, 7)})
if taken > 0 or (earlier and earlier ~= incarnation) then
  -- Messages that the earlier run took without a claim.
  push_missing_messages(checkpoint, NOW_US)
end
dispatch(checkpoint)
return {'ok', taken}
