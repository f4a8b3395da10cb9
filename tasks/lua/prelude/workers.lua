-- Which workers serve a checkpoint, what they do, how many slots they have together, and
-- what they run.
--
-- Workers and slots are counted when they change, so that no script walks over all workers to know a sum. `capacity` is
-- one hash for each checkpoint. It has the share of each worker, `worker:<name>` with `<activity> <slots>`, and the sums:
-- `slots`, and the number of workers for each activity. A worker that takes no jobs has no slots in its share. The shares
-- are kept with the sums and not in the workers' own hashes, because such a hash expires with its worker, and the share
-- must be subtracted afterwards.
--
-- A worker is live while its score in `workers` is in the future. One that is no longer live stays in both keys until the
-- reaper removes it; until then `live_counts` subtracts its share. So only heartbeats, `register`, `deregister` and the
-- reaper write: a script that reads the counts first may still refuse, or only read.

-- Most arguments that one command gets from a list. Lua's `unpack` has a limit of about 8,000.
local ARGUMENTS_AT_ONCE = 1000

-- Calls `action` with parts of a list.
local function in_parts(list, action)
  for first = 1, #list, ARGUMENTS_AT_ONCE do
    action({unpack(list, first, math.min(first + ARGUMENTS_AT_ONCE - 1, #list))})
  end
end

-- The sums in `capacity`. `serving`: the worker takes jobs. `reloading`: it replaces a crashed engine. `starting`: it
-- loads its checkpoint for the first time. `stalled` and `draining`: as the states of the same names.
local COUNTS = {'slots', 'serving', 'reloading', 'starting', 'stalled', 'draining'}

-- Adds a worker's share to sums, `sign` times.
local function add_share(sums, share, sign)
  local activity, slots = string.match(share, '^(%a+) (%d+)$')
  if activity then
    sums[activity] = (sums[activity] or 0) + sign
    sums.slots = (sums.slots or 0) + sign * slots
  end
end

-- Adds changes to the sums of a checkpoint. A sum of zero is removed, and with the last one the hash.
local function change_counts(checkpoint, changes)
  for count, change in pairs(changes) do
    if change ~= 0 and redis.call('HINCRBY', KEY.capacity(checkpoint), count, format_int(change)) <= 0 then
      redis.call('HDEL', KEY.capacity(checkpoint), count)
    end
  end
end

-- Sets a worker's share; nil removes it. Returns whether the share changed.
local function count_worker(checkpoint, name, share)
  local key, field, changes = KEY.capacity(checkpoint), 'worker:' .. name, {}
  local before = redis.call('HGET', key, field)
  if before == (share or false) then
    return false
  end
  if before then
    add_share(changes, before, -1)
  end
  if share then
    redis.call('HSET', key, field, share)
    add_share(changes, share, 1)
  else
    redis.call('HDEL', key, field)
  end
  change_counts(checkpoint, changes)
  return true
end

-- Returns the fields of `capacity` for a list of workers, and the changes of the sums if they are removed.
local function removal_of(checkpoint, names)
  local fields, changes = {}, {}
  for index, name in ipairs(names) do
    fields[index] = 'worker:' .. name
  end
  for _, share in ipairs(redis.call('HMGET', KEY.capacity(checkpoint), unpack(fields))) do
    if share then
      add_share(changes, share, -1)
    end
  end
  return fields, changes
end

-- Returns the workers that are registered and no longer live.
local function expired_workers(checkpoint)
  return redis.call('ZRANGEBYSCORE', KEY.workers(checkpoint), '-inf', NOW_MS)
end

-- Returns the sums of the live workers, by the names in COUNTS.
local function live_counts(checkpoint)
  local counts = {}
  for index, count in ipairs(redis.call('HMGET', KEY.capacity(checkpoint), unpack(COUNTS))) do
    counts[COUNTS[index]] = tonumber(count or 0) or 0
  end
  in_parts(expired_workers(checkpoint), function(names)
    local _, changes = removal_of(checkpoint, names)
    for count, change in pairs(changes) do
      counts[count] = (counts[count] or 0) + change
    end
  end)
  return counts
end

-- Removes the workers that are no longer live. Returns how many there were.
local function remove_expired_workers(checkpoint)
  local expired = expired_workers(checkpoint)
  in_parts(expired, function(names)
    local fields, changes = removal_of(checkpoint, names)
    redis.call('ZREM', KEY.workers(checkpoint), unpack(names))
    redis.call('HDEL', KEY.capacity(checkpoint), unpack(fields))
    change_counts(checkpoint, changes)
  end)
  return #expired
end

-- Removes one worker from a checkpoint.
local function remove_worker(checkpoint, name)
  redis.call('ZREM', KEY.workers(checkpoint), name)
  count_worker(checkpoint, name, nil)
end

-- Returns a worker's share, according to its last heartbeat; nil if it is gone.
local function share_of(name)
  local state, slots, digest = unpack(redis.call('HMGET', KEY.worker(name), 'state', 'slots', 'digest'))
  if state == 'idle' or state == 'busy' then
    return 'serving ' .. format_int(tonumber(slots) or 0)
  end
  if state == 'starting' and digest and digest ~= '' then
    state = 'reloading'
  end
  return state and state .. ' 0' or nil
end

-- Lets the keys of a checkpoint's workers expire together, with the last worker.
local function expire_workers(checkpoint)
  local last = redis.call('ZREVRANGE', KEY.workers(checkpoint), 0, 0, 'WITHSCORES')[2]
  if last then
    redis.call('PEXPIREAT', KEY.workers(checkpoint), last)
    redis.call('PEXPIREAT', KEY.capacity(checkpoint), last)
  end
end

-- Counts the workers of a checkpoint anew, from the last heartbeats. The sums are always right, unless something else than
-- these scripts changed the keys: an eviction, an operator, or a clock that was set back.
local function recount_workers(checkpoint)
  redis.call('DEL', KEY.capacity(checkpoint))
  for _, name in ipairs(redis.call('ZRANGE', KEY.workers(checkpoint), 0, -1)) do
    count_worker(checkpoint, name, share_of(name))
  end
  expire_workers(checkpoint)
end

-- Notes that a worker runs a job. `register` needs the jobs of one worker, without a walk over those of all workers.
local function add_to_worker(id, worker)
  redis.call('SADD', KEY.worker_jobs(worker), id)
  redis.call('PEXPIRE', KEY.worker_jobs(worker), LIMIT.WORKER_JOBS_TTL_MS)
end

-- Notes that the worker in a job's record no longer runs it. A set that cannot be used is replaced at the next heartbeat.
local function remove_from_worker(id)
  local worker = get_fields(id, 'worker')
  if worker then
    redis.pcall('SREM', KEY.worker_jobs(worker), id)
  end
end
