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

-- Returns a checkpoint for which jobs wait, and since when, if this worker may have to load it; otherwise nil.
local function candidate(checkpoint)
  if has_child[checkpoint] then
    return nil
  end
  local bytes, weights = offered_bytes(checkpoint, name)
  local oldest = bytes and oldest_submitted_at(checkpoint)
  if not oldest then
    return nil
  end
  local load_ms, left_at = unpack(redis.call('HMGET', KEY.pace(checkpoint), 'load_ms', 'left_at'))
  return {
    checkpoint = checkpoint,
    bytes = bytes,
    oldest = oldest,
    since = math.max(oldest, math.min(finite(left_at) or 0, NOW_MS)),
    load_ms = load_duration(load_ms, weights),
  }
end

-- Finds out how a candidate is served: whether this worker has the claim on it already (`is_own`), and whether other
-- workers serve or load it (`has_others`). Returns false if it must not be loaded now.
local function is_eligible(wanted)
  local checkpoint = wanted.checkpoint
  local began_at, its_incarnation, owner = loading_claim(checkpoint)
  -- A claim of an earlier run under this name is void.
  if owner and owner ~= name then
    return false
  end
  wanted.is_own = owner == name and its_incarnation == incarnation
  wanted.began_at = wanted.is_own and began_at or 0
  local counts = live_counts(checkpoint)
  wanted.has_others = counts.serving + counts.reloading + counts.starting > 0
  return not wanted.has_others or wanted.is_own
    or redis.call('ZCARD', KEY.backlog(checkpoint)) > 0 and NOW_MS - wanted.oldest >= wanted.load_ms
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
  local _, weights = offered_bytes(checkpoint, name)
  child.bonus = switch_bonus(load_duration(redis.call('HGET', KEY.pace(checkpoint), 'load_ms'), weights or 0))
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
    local is_allowed = child.is_idle or not wanted.has_others and wanted.since < child.gives_way_to
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

-- Claims a candidate for this worker, and returns the reply.
local function decide(wanted, reply)
  local began_at = reply[1] == 'load' and (wanted.began_at > 0 and wanted.began_at or NOW_MS) or 0
  claim_load(wanted.checkpoint, name, incarnation, began_at, ttl_ms)
  redis.call('HSET', KEY.switching_worker(name), 'wants', wanted.checkpoint)
  if #reply == 3 then
    redis.call('HSET', KEY.pace(reply[2]), 'left_at', NOW_MS)
    redis.call('PEXPIRE', KEY.pace(reply[2]), LIMIT.PACE_TTL_MS)
  end
  return reply
end

-- Returns the decision for a candidate: a reply; nil if there is no room for it now. Counts candidates, and sets those
-- aside that other workers serve as well. Returns true as the second value if no other candidate may be loaded.
local others, considered = {}, 0
local function consider(wanted)
  if not is_eligible(wanted) then
    return nil, false
  elseif wanted.has_others and not wanted.is_own then
    table.insert(others, wanted)
    return nil, false
  end
  considered = considered + 1
  local reply = make_room(wanted)
  -- After a while, smaller ones must not take the memory that it waits for.
  local is_last = NOW_MS - wanted.since > switch_bonus(wanted.load_ms) or considered >= LIMIT.SWITCH_CANDIDATES
  return reply and decide(wanted, reply), is_last
end

-- Better scores of checkpoints in WAITING: score, checkpoint, ...
local better = {}

-- Returns the reply. The scores in WAITING are lower than the times by which the candidates are compared, or equal. So
-- those that are before a score among the ones that were read are in their final order.
local function next_decision()
  local wants = redis.call('HGET', KEY.switching_worker(name), 'wants')
  local began_at, its_incarnation, owner = loading_claim(wants or '')
  -- This worker makes room for it already.
  local pending = began_at and owner == name and its_incarnation == incarnation and candidate(wants)
  if pending then
    local reply, is_last = consider(pending)
    if reply or is_last then
      return reply or {}
    end
  end
  local found, at, first, chunk = {}, 1, 0, nil
  repeat
    chunk = redis.call('ZRANGE', KEY.WAITING, first, first + LIMIT.SWITCH_CHUNK - 1, 'WITHSCORES')
    for index = 1, #chunk, 2 do
      local wanted = (not pending or chunk[index] ~= wants) and candidate(chunk[index])
      if wanted then
        table.insert(found, wanted)
        if wanted.since > tonumber(chunk[index + 1]) then
          table.insert(better, wanted.since)
          table.insert(better, wanted.checkpoint)
        end
      end
    end
    table.sort(found, function(one, other)
      if one.since ~= other.since then
        return one.since < other.since
      end
      return one.checkpoint < other.checkpoint
    end)
    first = first + LIMIT.SWITCH_CHUNK
    local is_end = #chunk < 2 * LIMIT.SWITCH_CHUNK
    local ordered_until = tonumber(chunk[#chunk])
    while found[at] and (is_end or found[at].since < ordered_until) do
      local reply, is_last = consider(found[at])
      if reply or is_last then
        return reply or {}
      end
      at = at + 1
    end
  until is_end
  for _, wanted in ipairs(considered == 0 and not has_work and others or {}) do
    local reply = make_room(wanted)
    if reply then
      return decide(wanted, reply)
    end
  end
  return {}
end

local reply = next_decision()
in_parts(better, function(scores)
  redis.call('ZADD', KEY.WAITING, 'XX', unpack(scores))
end)
return reply
