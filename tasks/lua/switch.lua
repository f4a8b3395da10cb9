-- Decides which checkpoint a switching worker loads next, and which one it gives up for that.
--
-- Candidates are the checkpoints that it offers and has not loaded, and for which jobs wait. The one whose oldest job
-- waits longest is next; the time until the worker last gave the checkpoint up does not count. If it fits into the free
-- memory, it is loaded. Otherwise others are given up until it fits: first those that are idle, the one that was used
-- least recently first; then those whose next job waits shortest. What is loaded has a bonus, a multiple of the time that its
-- load takes: a checkpoint with work is given up only for a job that was submitted earlier than its own next job by more
-- than the bonus, and only if it has been loaded for as long as the bonus. So no queue keeps another one waiting for longer
-- than it takes to start the jobs that were submitted until the bonus after the other one's, and to end those that run.
-- What another live worker serves as well has no bonus.
--
-- A checkpoint that another live worker serves or loads is a candidate only if there is no other one, if this worker has
-- no other work, if all slots of the other workers are taken, and if a job has waited for as long as a load takes.
--
-- The worker has the claim on the checkpoint in the reply (see prelude/switching.lua), so no other switching worker gets
-- the same one. It calls this each second, which renews the claim while it makes room, and at each notification.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 bytes of memory that its children may use together
--        4 ms until a claim ends that is not renewed
--        then for each child: checkpoint, name of the child, bytes of memory that it uses, 1 if it is being given up, else 0
-- reply  {}                               nothing to do now
--        {'load', checkpoint}             start a child
--        {'retire', loaded, checkpoint}   give up a loaded checkpoint to make room: its child ends its running jobs
--        {'hand_on', loaded, checkpoint}  the same, but the child releases its running jobs: other workers have slots for
--                                         them

write_even_if_full()
local name, incarnation, budget, ttl_ms = unpack(ARGV, 1, 4)
repair_key(KEY.switching_worker(name), 'hash')
repair_key(KEY.offers(name), 'hash')

if redis.call('HGET', KEY.switching_worker(name), 'incarnation') ~= incarnation or not is_switching(name) then
  return {}
end

local children, has_child, free, room = {}, {}, tonumber(budget), tonumber(budget)
for index = 5, #ARGV, 4 do
  local checkpoint, child, bytes, retiring = unpack(ARGV, index, index + 3)
  has_child[checkpoint] = true
  free = free - bytes
  if retiring == '0' then
    room = room - bytes
    table.insert(children, {checkpoint = checkpoint, name = child, bytes = tonumber(bytes)})
  end
end

-- Returns for how long a loaded checkpoint is preferred, in ms.
local function switch_bonus(load_ms)
  return math.min(LIMIT.MOST_SWITCH_BONUS_MS, LIMIT.SWITCH_BONUS_LOADS * load_ms)
end

-- Returns a checkpoint for which jobs wait, if this worker may load it; otherwise nil.
local function candidate(checkpoint)
  local bytes = not has_child[checkpoint] and offered_bytes(checkpoint, name)
  local oldest = bytes and oldest_submitted_at(checkpoint)
  if not oldest then
    return nil
  end
  local began_at, its_incarnation, owner = loading_claim(checkpoint)
  local is_own = owner == name and its_incarnation == incarnation
  -- A claim of an earlier run under this name is void.
  if owner and owner ~= name then
    return nil
  end
  local counts = live_counts(checkpoint)
  local has_others = counts.serving + counts.reloading + counts.starting > 0
  local load_ms = load_duration(checkpoint, bytes)
  if has_others and not is_own
    and (redis.call('ZCARD', KEY.backlog(checkpoint)) == 0 or NOW_MS - oldest < load_ms) then
    return nil
  end
  local left_at = finite(redis.call('HGET', KEY.pace(checkpoint), 'left_at')) or 0
  return {
    checkpoint = checkpoint,
    bytes = bytes,
    since = math.max(oldest, math.min(left_at, NOW_MS)),
    bonus = switch_bonus(load_ms),
    -- Jobs wait that no other worker can run.
    is_first = not has_others,
    -- This worker makes room for it already.
    is_own = is_own,
    began_at = is_own and began_at or 0,
  }
end

-- Finds out what a child does: whether it has loaded its checkpoint (`is_loaded`) and has no work (`is_idle`), when it was
-- used last, and when its next job was submitted (`next_at`): now, if no job waits that only this child can run. It is
-- given up for a job that was submitted before `gives_way_to`.
local function inspect(child)
  local checkpoint = child.checkpoint
  repair_key(KEY.worker(child.name), 'hash')
  repair_key(KEY.worker_jobs(child.name), 'set')
  local state, slots, started_at, loaded_at, used_at = unpack(redis.call(
    'HMGET', KEY.worker(child.name), 'state', 'slots', 'started_at', 'loaded_at', 'used_at'))
  child.is_loaded = state and state ~= 'starting'
  child.loaded_at = finite(loaded_at) or finite(started_at) or 0
  child.used_at = finite(used_at) or child.loaded_at
  local counts, serves = live_counts(checkpoint), state == 'idle' or state == 'busy'
  local others = counts.serving - (serves and 1 or 0)
  local their_slots = counts.slots - (serves and finite(slots) or 0)
  child.runs = redis.call('SCARD', KEY.worker_jobs(child.name))
  local next_at = others <= 0 and next_submitted_at(checkpoint) or nil
  child.is_idle = child.runs == 0 and not next_at
  child.next_at = next_at or NOW_MS
  child.bonus = switch_bonus(load_duration(checkpoint, child.bytes))
  -- What another worker serves as well has no bonus.
  child.gives_way_to = child.next_at - (others > 0 and 0 or child.bonus)
  child.can_hand_on = child.runs > 0 and others > 0 and their_slots >= redis.call('ZCARD', KEY.running(checkpoint))
end

local function is_before(first, second)
  if first.is_idle ~= second.is_idle then
    return first.is_idle
  elseif first.is_idle and first.used_at ~= second.used_at then
    return first.used_at < second.used_at
  elseif not first.is_idle and first.next_at ~= second.next_at then
    return first.next_at > second.next_at
  end
  return first.name < second.name
end

-- The children that can be given up, in the order in which that happens, and whether one of all children has work.
local victims, has_work = {}, false
for _, child in ipairs(children) do
  inspect(child)
  has_work = has_work or not child.is_loaded or not child.is_idle
  if child.is_loaded then
    table.insert(victims, child)
  end
end
table.sort(victims, is_before)

-- Returns the reply for a candidate; nil if there is no room for it now.
local function make_room(wanted)
  if #ARGV < 5 or wanted.bytes <= free then
    return {'load', wanted.checkpoint}
  end
  local left, space = #children, room
  if left == 0 or wanted.bytes <= space then
    -- Children that are being given up leave enough.
    return {}
  end
  local first
  for _, child in ipairs(victims) do
    local is_allowed = child.is_idle or wanted.is_first and wanted.since < child.gives_way_to
      and child.loaded_at + child.bonus <= NOW_MS
    if is_allowed then
      first = first or child
      left, space = left - 1, space + child.bytes
      if left == 0 or wanted.bytes <= space then
        return {first.can_hand_on and 'hand_on' or 'retire', first.checkpoint, wanted.checkpoint}
      end
    end
  end
  return nil
end

local candidates, has_first = {}, false
for _, checkpoint in ipairs(redis.call('SMEMBERS', KEY.CHECKPOINTS)) do
  local found = candidate(checkpoint)
  if found then
    table.insert(candidates, found)
    has_first = has_first or found.is_first
  end
end
table.sort(candidates, function(first, second)
  if first.is_own ~= second.is_own then
    return first.is_own
  elseif first.since ~= second.since then
    return first.since < second.since
  end
  return first.checkpoint < second.checkpoint
end)

for _, wanted in ipairs(candidates) do
  if wanted.is_first or wanted.is_own or not (has_first or has_work) then
    local reply = make_room(wanted)
    if reply then
      local began_at = reply[1] == 'load' and (wanted.began_at > 0 and wanted.began_at or NOW_MS) or 0
      claim_load(wanted.checkpoint, name, incarnation, began_at, ttl_ms)
      if reply[1] == 'retire' or reply[1] == 'hand_on' then
        redis.call('HSET', KEY.pace(reply[2]), 'left_at', NOW_MS)
        redis.call('PEXPIRE', KEY.pace(reply[2]), LIMIT.PACE_TTL_MS)
      end
      return reply
    elseif NOW_MS - wanted.since > wanted.bonus then
      -- Smaller ones must not take the memory that it waits for.
      return {}
    end
  end
end
return {}
