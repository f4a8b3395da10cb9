-- Fourth part of the prelude: which workers serve a checkpoint, how many slots they have together, and what they run.
--
-- Slots are counted when they change, so that no script walks over all workers to know their sum. `capacity` is one hash
-- for each checkpoint: the slots that each worker contributes, `slots:<name>`, and the sums `workers` and `slots`. A worker
-- that takes no jobs contributes nothing and has no field. The share of a worker is kept with the sums and not in the
-- worker's own hash, because that hash expires with the worker, and its share must be subtracted afterwards.
--
-- A worker is live while its score in `workers` is in the future. One that is no longer live stays in both keys until the
-- reaper removes it; until then `live_capacity` subtracts its share. So only heartbeats, `register`, `deregister` and the
-- reaper write: a script that reads the capacity first may still refuse, or only read.

-- Most arguments that one command gets from a list. Lua's `unpack` has a limit of about 8,000.
local ARGUMENTS_AT_ONCE = 1000

-- Calls `action` with parts of a list.
local function in_parts(list, action)
  for first = 1, #list, ARGUMENTS_AT_ONCE do
    action({unpack(list, first, math.min(first + ARGUMENTS_AT_ONCE - 1, #list))})
  end
end

-- Adds to the sums of a checkpoint. A hash without workers is removed.
local function add_to_capacity(checkpoint, workers, slots)
  local key = KEY.capacity(checkpoint)
  redis.call('HINCRBY', key, 'slots', format_int(slots + 0))
  if redis.call('HINCRBY', key, 'workers', format_int(workers + 0)) <= 0 then
    redis.call('DEL', key)
  end
end

-- Sets how many slots a worker contributes; 0 if it takes no jobs. Returns whether that changed.
local function count_slots(checkpoint, name, slots)
  local key, field = KEY.capacity(checkpoint), 'slots:' .. name
  local before = tonumber(redis.call('HGET', key, field) or 0)
  if slots == before then
    return false
  end
  if slots > 0 then
    redis.call('HSET', key, field, slots)
  else
    redis.call('HDEL', key, field)
  end
  add_to_capacity(checkpoint, (slots > 0 and 1 or 0) - (before > 0 and 1 or 0), slots - before)
  return true
end

-- Returns the fields of `capacity` for a list of workers, and how many of them contribute, with how many slots.
local function shares_of(checkpoint, names)
  local fields, workers, slots = {}, 0, 0
  for index, name in ipairs(names) do
    fields[index] = 'slots:' .. name
  end
  for _, share in ipairs(redis.call('HMGET', KEY.capacity(checkpoint), unpack(fields))) do
    if share then
      workers, slots = workers + 1, slots + share
    end
  end
  return fields, workers, slots
end

-- Returns the workers that are registered and no longer live.
local function expired_workers(checkpoint)
  return redis.call('ZRANGEBYSCORE', KEY.workers(checkpoint), '-inf', NOW_MS)
end

-- Returns how many live workers take jobs, and their slots together.
local function live_capacity(checkpoint)
  local workers, slots = unpack(redis.call('HMGET', KEY.capacity(checkpoint), 'workers', 'slots'))
  if not workers or not slots then
    return 0, 0
  end
  in_parts(expired_workers(checkpoint), function(names)
    local _, expired, their_slots = shares_of(checkpoint, names)
    workers, slots = workers - expired, slots - their_slots
  end)
  return tonumber(workers), tonumber(slots)
end

-- Removes the workers that are no longer live. Returns how many there were.
local function remove_expired_workers(checkpoint)
  local expired = expired_workers(checkpoint)
  in_parts(expired, function(names)
    local fields, workers, slots = shares_of(checkpoint, names)
    redis.call('ZREM', KEY.workers(checkpoint), unpack(names))
    if workers > 0 then
      redis.call('HDEL', KEY.capacity(checkpoint), unpack(fields))
      add_to_capacity(checkpoint, -workers, -slots)
    end
  end)
  return #expired
end

-- Removes one worker from a checkpoint.
local function remove_worker(checkpoint, name)
  redis.call('ZREM', KEY.workers(checkpoint), name)
  count_slots(checkpoint, name, 0)
end

-- Returns how many slots a worker contributes, according to its last heartbeat; 0 if it takes no jobs or is gone.
local function slots_of(name)
  local slots, state = unpack(redis.call('HMGET', KEY.worker(name), 'slots', 'state'))
  local takes_jobs = state == 'idle' or state == 'busy'
  return takes_jobs and tonumber(slots) or 0
end

-- Lets the keys of a checkpoint's workers expire together, with the last worker.
local function expire_workers(checkpoint)
  local last = redis.call('ZREVRANGE', KEY.workers(checkpoint), 0, 0, 'WITHSCORES')[2]
  if last then
    redis.call('PEXPIREAT', KEY.workers(checkpoint), last)
    redis.call('PEXPIREAT', KEY.capacity(checkpoint), last)
  end
end

-- Counts the slots of a checkpoint anew, from the last heartbeats. The sums are always right, unless something else than
-- these scripts changed the keys: an eviction, an operator, or a clock that was set back.
local function recount_slots(checkpoint)
  redis.call('DEL', KEY.capacity(checkpoint))
  for _, name in ipairs(redis.call('ZRANGE', KEY.workers(checkpoint), 0, -1)) do
    count_slots(checkpoint, name, slots_of(name))
  end
  expire_workers(checkpoint)
end

-- Notes that a worker runs a job. `register` needs the jobs of one worker, without a walk over those of all workers.
local function add_to_worker(id, worker)
  redis.call('SADD', KEY.worker_jobs(worker), id)
  redis.call('PEXPIRE', KEY.worker_jobs(worker), LIMIT.WORKER_JOBS_TTL_MS)
end

-- Notes that the worker in a job's record no longer runs it.
local function remove_from_worker(id)
  local worker = get_fields(id, 'worker')
  if worker then
    redis.call('SREM', KEY.worker_jobs(worker), id)
  end
end
