-- Redis's memory limit, `maxmemory`.
--
-- When Redis is full, it refuses the first write of a script if that write may need memory. It accepts a write that can
-- only remove, and then every further write of the script.

-- Lets the script write although Redis is full. Every script that continues or ends accepted work begins with it, so
-- that a full Redis stops only new jobs. Such a script may exceed the limit: `admission_refusal` keeps memory for that.
local function write_even_if_full()
  redis.call('DEL', KEY.NOTHING)
end

-- Returns the memory in bytes that live jobs may still need.
local function reserved_bytes()
  return tonumber(redis.call('GET', KEY.RESERVED) or 0)
end

-- Returns nil if a new job fits into Redis's memory, else the time in ms until the next finished job expires and frees
-- memory; -1 if no finished job is kept. `record_bytes` is the size of the job's record, `reserve` what the job will
-- need until its end. Without a limit, or without the permission to read it, every job fits.
local function admission_refusal(record_bytes, reserve)
  local info = redis.pcall('INFO', 'memory')
  local limit = type(info) == 'string' and tonumber(string.match(info, '\nmaxmemory:(%d+)')) or 0
  if limit == 0 then
    return nil
  end
  local used = tonumber(string.match(info, '\nused_memory:(%d+)'))
  if used + reserved_bytes() + record_bytes + reserve <= limit * (1 - LIMIT.MEMORY_HEADROOM) then
    return nil
  end
  local next_expiry = redis.call('ZRANGE', KEY.EXPIRIES, 0, 0, 'WITHSCORES')[2]
  return next_expiry and math.max(0, next_expiry - NOW_MS) or -1
end

-- Reserves memory for a job that was accepted.
local function reserve_memory(id, reserve)
  redis.call('HSET', KEY.job(id), 'reserved_bytes', reserve)
  redis.call('INCRBY', KEY.RESERVED, reserve)
end

-- Gives back what was reserved for a job that ends. `prune_listing` resets the sum when no job is live, because the
-- share of a job whose record was lost cannot be given back.
local function release_memory(id)
  local reserved = get_fields(id, 'reserved_bytes')
  if reserved then
    redis.call('DECRBY', KEY.RESERVED, reserved)
    redis.call('HDEL', KEY.job(id), 'reserved_bytes')
  end
end
