-- Workers that switch between checkpoints: what they offer, and which of them loads what.
--
-- A switching worker offers checkpoints and loads some of them, each in a child: an ordinary worker. Its heartbeat
-- renews one score in `switching`, however many checkpoints it offers. Its offers are three entries each: in its hash
-- `offers`, in the set `offering` of the checkpoint, and in `offered`. They end when it retracts them, or when the reaper
-- finds that it is gone.
--
-- `loading` of a checkpoint is the claim of the switching worker that is about to load it: `<ms> <incarnation> <name>`.
-- The first part is the time at which the load began, or 0 while the worker makes room. The claim ends when a worker has
-- registered for the checkpoint, or by itself when the switching worker does not renew it.

-- Notes that a card, or what is offered, has changed.
local catalog_has_changed = false
local function change_catalog()
  if not catalog_has_changed then
    redis.call('SET', KEY.CATALOG_VERSION, format_int(NOW_US), 'PX', LIMIT.OFFER_TTL_MS)
    catalog_has_changed = true
  end
end

-- Stores the card of a checkpoint.
local function set_card(checkpoint, card, digest)
  local before, its_digest = unpack(redis.call('HMGET', KEY.card(checkpoint), 'card', 'digest'))
  if before ~= card or its_digest ~= digest then
    redis.call('HSET', KEY.card(checkpoint), 'card', card, 'digest', digest)
    change_catalog()
  end
end

-- Returns whether a switching worker offers a checkpoint.
local function is_offered(checkpoint)
  return redis.call('ZSCORE', KEY.OFFERED, checkpoint) == 'inf'
end

-- Returns whether a switching worker has sent a heartbeat recently.
local function is_switching(name)
  local ends_at = redis.call('ZSCORE', KEY.SWITCHING, name)
  return ends_at and tonumber(ends_at) > NOW_MS
end

-- Returns the live switching workers that offer a checkpoint, but not the one with this name.
local function others_offering(checkpoint, name)
  local others = {}
  for _, other in ipairs(redis.call('SMEMBERS', KEY.offering(checkpoint))) do
    if other ~= name and is_switching(other) then
      table.insert(others, other)
    end
  end
  return others
end

-- Returns the bytes of memory that a checkpoint needs, and those of its weights, if a worker offers it with the weights of
-- its card; otherwise nil.
local function offered_bytes(checkpoint, name)
  local offer = redis.call('HGET', KEY.offers(name), checkpoint)
  local bytes, weights, digest = string.match(offer or '', '^(%d+) (%d+) (.*)$')
  if bytes and redis.call('HGET', KEY.card(checkpoint), 'digest') == digest then
    return tonumber(bytes), tonumber(weights)
  end
  return nil
end

-- Tells the switching workers that a job waits for a checkpoint that no worker serves.
local function notify_switching(checkpoint)
  if redis.call('EXISTS', KEY.offering(checkpoint)) == 1 and live_counts(checkpoint).serving == 0 then
    redis.call('PUBLISH', KEY.SWITCHING_CHANNEL, checkpoint)
  end
end

-- Returns the claim on a checkpoint: the ms at which the load began, the incarnation and the name of the worker. Nil if
-- there is none.
local function loading_claim(checkpoint)
  local claim = redis.pcall('GET', KEY.loading(checkpoint))
  local began_at, incarnation, name = string.match(type(claim) == 'string' and claim or '', '^(%d+) (%S+) (.+)$')
  if not began_at then
    return nil
  end
  return tonumber(began_at), incarnation, name
end

-- Claims a checkpoint for a switching worker, or renews its claim. `began_at` is 0 while the worker makes room.
local function claim_load(checkpoint, name, incarnation, began_at, ttl_ms)
  local claim = format_int(began_at) .. ' ' .. incarnation .. ' ' .. name
  redis.call('SET', KEY.loading(checkpoint), claim, 'PX', ttl_ms)
end

-- Ends the claim of a switching worker on a checkpoint, if it has one.
local function end_claim(checkpoint, name)
  local _, _, owner = loading_claim(checkpoint)
  if owner == name then
    redis.call('DEL', KEY.loading(checkpoint))
  end
end

-- Ends an offer. `reason` says why the jobs that wait for the checkpoint must fail, as in RETRACTED, unless another worker
-- has it; nil: they wait.
local function end_offer(checkpoint, name, reason)
  local ended = redis.call('HDEL', KEY.offers(name), checkpoint) + redis.call('SREM', KEY.offering(checkpoint), name)
  end_claim(checkpoint, name)
  if ended == 0 or #others_offering(checkpoint, name) > 0 then
    return
  end
  if reason then
    redis.call('HSET', KEY.RETRACTED, checkpoint, reason)
    redis.call('PEXPIRE', KEY.RETRACTED, LIMIT.OFFER_TTL_MS)
  end
  local ttl_ms = redis.call('HEXISTS', KEY.RETRACTED, checkpoint) == 1 and LIMIT.RETRACTED_TTL_MS or LIMIT.OFFER_TTL_MS
  redis.call('ZADD', KEY.OFFERED, NOW_MS + ttl_ms, checkpoint)
  change_catalog()
end

-- Ends all offers of a switching worker that is gone, or that stops.
local function end_switching(name)
  repair_key(KEY.offers(name), 'hash')
  for _, checkpoint in ipairs(redis.call('HKEYS', KEY.offers(name))) do
    repair_key(KEY.offering(checkpoint), 'set')
    end_offer(checkpoint, name, nil)
  end
  redis.call('DEL', KEY.offers(name), KEY.switching_worker(name))
  redis.call('ZREM', KEY.SWITCHING, name)
end

-- Returns how long a load takes, in ms: as long as the last one of the checkpoint, whose `load_ms` is given, or else a
-- guess from the bytes of its weights.
local function load_duration(load_ms, weights)
  return finite(load_ms) or LIMIT.LOAD_MS + weights / LIMIT.LOAD_BYTES_PER_MS
end

-- Returns the slots that a checkpoint will have when a switching worker has loaded it, and the ms that the load will still
-- take. Returns 0 and nil if no live switching worker offers it.
local function future_load(checkpoint)
  local began_at, _, owner = loading_claim(checkpoint)
  local offering = others_offering(checkpoint, nil)
  table.sort(offering)
  local name = owner and is_switching(owner) and owner or offering[1]
  local bytes, weights
  if name then
    bytes, weights = offered_bytes(checkpoint, name)
  end
  if not bytes then
    return 0, nil
  end
  local since_ms = began_at and began_at > 0 and math.max(0, NOW_MS - began_at) or 0
  local slots = finite(redis.call('HGET', KEY.switching_worker(name), 'slots')) or 0
  local load_ms = load_duration(redis.call('HGET', KEY.pace(checkpoint), 'load_ms'), weights)
  return slots, math.max(0, load_ms - since_ms)
end

-- Returns when the job at the head of a queue was submitted, in ms: the first one of the dispatched jobs, or else of the
-- backlog. Nil if no job waits.
local function next_submitted_at(checkpoint)
  local first = redis.call('ZRANGE', KEY.dispatched(checkpoint), 0, 0)[1]
  local created_at = first and finite(get_fields(first, 'created_at'))
  if created_at then
    return created_at
  end
  local score = redis.call('ZRANGE', KEY.backlog(checkpoint), 0, 0, 'WITHSCORES')[2]
  return score and submitted_at(tonumber(score)) or nil
end

-- Returns when the oldest waiting job of a queue was submitted, in ms; nil if no job waits. Jobs are in order within one
-- priority, so it is enough to look at the first one of each.
local function oldest_submitted_at(checkpoint)
  local first = redis.call('ZRANGE', KEY.dispatched(checkpoint), 0, 0)[1]
  local oldest, from = first and finite(get_fields(first, 'created_at')) or nil, '-inf'
  while true do
    local score = redis.call(
      'ZRANGEBYSCORE', KEY.backlog(checkpoint), from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    if not score then
      return oldest
    end
    oldest = math.min(oldest or math.huge, submitted_at(tonumber(score)))
    from = format_int((math.floor(score / PRIORITY_STEP) + 1) * PRIORITY_STEP)
  end
end

-- Notes that a worker has loaded a checkpoint. If a switching worker has claimed it, the load began with the claim.
local function note_loaded(checkpoint, name)
  if redis.call('HSETNX', KEY.worker(name), 'loaded_at', NOW_MS) == 0 then
    return
  end
  local began_at = loading_claim(checkpoint)
  if began_at and began_at > 0 and began_at <= NOW_MS then
    redis.call('HSET', KEY.worker(name), 'load_ms', NOW_MS - began_at)
    redis.call('HSET', KEY.pace(checkpoint), 'load_ms', NOW_MS - began_at)
    redis.call('PEXPIRE', KEY.pace(checkpoint), LIMIT.PACE_TTL_MS)
    redis.call('DEL', KEY.loading(checkpoint))
  end
end

-- Notes that a worker has claimed a job. If it loaded the checkpoint for jobs that waited, and this is one of them, the
-- record says how long that took.
local function note_claim(id, worker, attempt, created_at)
  local known = redis.pcall('HMGET', KEY.worker(worker), 'loaded_at', 'load_ms')
  local loaded_at, load_ms = finite(known[1]), finite(known[2])
  if not load_ms then
    return
  end
  redis.call('HSET', KEY.worker(worker), 'used_at', NOW_MS)
  if attempt == 1 and loaded_at and tonumber(created_at) < loaded_at then
    redis.call('HSET', KEY.job(id), 'load_ms', load_ms)
  end
end

-- Fails jobs that wait for a checkpoint which was retracted, at most a limited number of them, unless a worker has it.
local function fail_retracted(checkpoint)
  local reason = redis.call('HGET', KEY.RETRACTED, checkpoint)
  if not reason then
    return
  end
  local counts = live_counts(checkpoint)
  if is_offered(checkpoint) or counts.serving + counts.reloading + counts.starting + counts.stalled > 0 then
    return
  end
  local failure = reason == 'removed' and FAILURE.CHECKPOINT_REMOVED or FAILURE.CHECKPOINT_UNLOADABLE
  for _, queue in ipairs({KEY.dispatched(checkpoint), KEY.backlog(checkpoint)}) do
    for _, id in ipairs(redis.call('ZRANGE', queue, 0, LIMIT.REAP_AT_ONCE - 1)) do
      guard(id, finish_failed, failure)
    end
  end
end

-- Returns whether a checkpoint has workers, or jobs that were dispatched.
local function is_used(checkpoint)
  return redis.call('EXISTS', KEY.workers(checkpoint), KEY.capacity(checkpoint), KEY.running(checkpoint),
    KEY.dispatched(checkpoint)) > 0
end

-- Returns whether a checkpoint has jobs in its backlog.
local function is_waited_for(checkpoint)
  return redis.call('EXISTS', KEY.backlog(checkpoint), KEY.waiting_tokens(checkpoint)) > 0
end

-- Deletes the cards of checkpoints that have not been offered for a while, at most a limited number of them. One that has
-- workers or jobs is kept. Some offers, drawn at random, are checked: keys of their worker may have been lost.
local function forget_offers()
  for _, checkpoint in ipairs(redis.call('ZRANDMEMBER', KEY.OFFERED, LIMIT.SAMPLE_OFFERS)) do
    if is_offered(checkpoint) and #others_offering(checkpoint, nil) == 0 then
      redis.call('ZADD', KEY.OFFERED, NOW_MS + LIMIT.OFFER_TTL_MS, checkpoint)
      change_catalog()
    end
  end
  for _, checkpoint in ipairs(redis.call(
    'ZRANGEBYSCORE', KEY.OFFERED, '-inf', NOW_MS, 'LIMIT', 0, LIMIT.REAP_AT_ONCE)) do
    if is_used(checkpoint) or is_waited_for(checkpoint) then
      redis.call('ZADD', KEY.OFFERED, NOW_MS + LIMIT.RETRACTED_TTL_MS, checkpoint)
    else
      redis.call('DEL', KEY.card(checkpoint), KEY.offering(checkpoint))
      redis.call('ZREM', KEY.OFFERED, checkpoint)
      redis.call('HDEL', KEY.RETRACTED, checkpoint)
      redis.call('SREM', KEY.CHECKPOINTS, checkpoint)
      change_catalog()
    end
  end
end
