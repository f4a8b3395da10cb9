-- Registers a worker and publishes its checkpoint's card.
--
-- A worker that still loads its checkpoint calls this without a card each second, and is then listed as `starting`. Its
-- digest is not known, so it is not compared; and while an earlier run under its name is listed, nothing happens.
--
-- A later run under the same name replaces the earlier run. Jobs that the earlier run still holds return to the head of
-- the backlog at once, before their leases expire. That counts as a loss for each: a run that stops in an orderly way
-- releases its jobs before its name can be taken, so a run that still holds jobs has crashed.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 checkpoint   4 digest, or ''   5 card (JSON), or ''
--        6 ms until the worker counts as gone
--        7.. field, value, ... of the worker's hash
-- reply  {'ok', jobs taken from the earlier run}
--        {'conflict', digest}    another live worker serves these weights under the checkpoint's name

write_even_if_full()
local name, incarnation, checkpoint, digest, card, ttl_ms = unpack(ARGV, 1, 6)
repair_key(KEY.card(checkpoint), 'hash')
repair_key(KEY.worker(name), 'hash')
repair_key(KEY.worker_jobs(name), 'set')
local earlier, earlier_checkpoint = unpack(redis.call('HMGET', KEY.worker(name), 'incarnation', 'checkpoint'))
local is_loading = card == ''

if is_loading and earlier and earlier ~= incarnation then
  return {'ok', 0}
end

-- Returns whether other live workers have loaded the checkpoint. All of them have the digest of its card, because
-- `register` and `heartbeat` refuse others. A worker that drains claims no more jobs, so it does not count.
local function others_have_loaded()
  local counts = live_counts(checkpoint)
  local loaded = counts.serving + counts.reloading + counts.stalled
  local ends_at = redis.call('ZSCORE', KEY.workers(checkpoint), name)
  if ends_at and tonumber(ends_at) > NOW_MS then
    local own = {}
    add_share(own, redis.call('HGET', KEY.capacity(checkpoint), 'worker:' .. name) or '', 1)
    loaded = loaded - (own.serving or own.reloading or own.stalled or 0)
  end
  return loaded > 0
end

-- Takes the jobs that an earlier run still holds. Returns how many.
local function take_jobs()
  local taken, dispatchable = 0, {}
  local function reclaim(id)
    local status, holder, run, served = get_fields(id, 'status', 'worker', 'incarnation', 'checkpoint')
    if status ~= 'running' or holder ~= name then
      redis.call('SREM', KEY.worker_jobs(name), id)
    -- If the job does not run for the checkpoint in its record, the reaper finds out what is wrong.
    elseif run ~= incarnation and served and redis.call('ZSCORE', KEY.running(served), id) and return_lost(id, served) then
      taken, dispatchable[served] = taken + 1, true
    end
  end
  for _, id in ipairs(redis.call('SMEMBERS', KEY.worker_jobs(name))) do
    guard(id, reclaim)
  end
  -- The earlier run may have served another checkpoint.
  for served in pairs(dispatchable) do
    if served ~= checkpoint then
      dispatch(served)
    end
  end
  return taken
end

local served = redis.call('HGET', KEY.card(checkpoint), 'digest')
if not is_loading and served and served ~= digest and others_have_loaded() then
  return {'conflict', served}
end

if redis.call('SADD', KEY.CHECKPOINTS, checkpoint) == 1 and not is_offered(checkpoint) then
  change_catalog()
end
if earlier_checkpoint and earlier_checkpoint ~= checkpoint then
  remove_worker(earlier_checkpoint, name)
end
local taken = 0
if not is_loading then
  -- The card of an offer says more than that of the worker which has loaded it.
  if served ~= digest or not is_offered(checkpoint) then
    set_card(checkpoint, card, digest)
  end
  if earlier ~= incarnation then
    redis.call('DEL', KEY.worker(name))
  end
  note_loaded(checkpoint, name)
  -- Also if this run was announced before, because its earlier run was gone then.
  taken = take_jobs()
end
store_heartbeat(name, checkpoint, ttl_ms, {unpack(ARGV, 7)})
if taken > 0 or (earlier and earlier ~= incarnation) then
  -- Messages that the earlier run took without a claim.
  push_missing_messages(checkpoint, NOW_US)
end
dispatch(checkpoint)
return {'ok', taken}
