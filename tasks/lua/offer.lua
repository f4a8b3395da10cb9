-- Stores the heartbeat of a switching worker, and the offers that have changed since its last one. The cost depends on
-- these, not on how many checkpoints it offers.
--
-- KEYS   none
-- ARGV   1 worker   2 its incarnation   3 ms until the worker counts as gone
--        4 1 if all its earlier offers end, else 0   5 number of its offers after this call
--        then three lists, each after the number of its arguments:
--            field, value, ... of the worker's hash
--            checkpoint, reason, ... of the offers that it retracts: see RETRACTED
--            checkpoints that it loads now
--        then checkpoint, bytes of memory that it would need, bytes of its weights, digest, card (JSON), ... of new and
--            changed offers
-- reply  {'ok', conflicts, missing}    offers that were not accepted, because other live workers have other weights under
--                                      the name; earlier offers that must be sent again, because Redis lacks their cards,
--                                      or has other ones
--        {'unknown'}     Redis has other offers: the worker must send all of them, the first ones with argument 4
--        {'replaced'}    a later run is registered under the name

write_even_if_full()
local name, incarnation, ttl_ms, anew, total = unpack(ARGV, 1, 5)
repair_key(KEY.switching_worker(name), 'hash')
local registered = redis.call('HGET', KEY.switching_worker(name), 'incarnation')
if registered and registered ~= incarnation and anew == '0' then
  return {'replaced'}
end

local at = 6
local function next_list()
  local list = {unpack(ARGV, at + 1, at + ARGV[at])}
  at = at + 1 + ARGV[at]
  return list
end
local fields, retracted, loads = next_list(), next_list(), next_list()

-- Returns whether other live workers have other weights under a checkpoint's name.
local function conflicts_with_others(checkpoint, digest)
  local known = redis.call('HGET', KEY.card(checkpoint), 'digest')
  if not known or known == digest then
    return false
  end
  local counts = live_counts(checkpoint)
  return counts.serving + counts.reloading + counts.stalled > 0 or #others_offering(checkpoint, name) > 0
end

local function publish(checkpoint, bytes, weights, digest, card)
  redis.call('HSET', KEY.offers(name), checkpoint, bytes .. ' ' .. weights .. ' ' .. digest)
  redis.call('SADD', KEY.offering(checkpoint), name)
  redis.call('PEXPIRE', KEY.offering(checkpoint), LIMIT.OFFER_TTL_MS)
  redis.call('HDEL', KEY.RETRACTED, checkpoint)
  if not is_offered(checkpoint) then
    redis.call('ZADD', KEY.OFFERED, '+inf', checkpoint)
    change_catalog()
  end
  set_card(checkpoint, card, digest)
end

-- Returns whether Redis has all that belongs to an offer, and lets it live on.
local function is_complete(checkpoint)
  return offered_bytes(checkpoint, name) and is_offered(checkpoint)
    and redis.call('SISMEMBER', KEY.offering(checkpoint), name) == 1
    and redis.call('PEXPIRE', KEY.offering(checkpoint), LIMIT.OFFER_TTL_MS) == 1
end

repair_key(KEY.SWITCHING, 'zset')
repair_key(KEY.OFFERED, 'zset')
repair_key(KEY.RETRACTED, 'hash')
repair_key(KEY.offers(name), 'hash')
if anew == '1' then
  end_switching(name)
end
redis.call('ZADD', KEY.SWITCHING, NOW_MS + ttl_ms, name)
-- It stays after the last worker is gone, so that the reaper finds out who it was.
redis.call('PEXPIRE', KEY.SWITCHING, LIMIT.OFFER_TTL_MS)
for index = 1, #retracted, 2 do
  end_offer(retracted[index], name, retracted[index + 1])
end
local conflicts = {}
for index = at, #ARGV, 5 do
  local checkpoint, bytes, weights, digest, card = unpack(ARGV, index, index + 4)
  repair_key(KEY.card(checkpoint), 'hash')
  repair_key(KEY.offering(checkpoint), 'set')
  if conflicts_with_others(checkpoint, digest) then
    end_offer(checkpoint, name, nil)
    table.insert(conflicts, checkpoint)
  else
    publish(checkpoint, bytes, weights, digest, card)
  end
end
if redis.call('HLEN', KEY.offers(name)) ~= total - #conflicts then
  return {'unknown'}
end
local missing = {}
for _, checkpoint in ipairs(redis.call('HRANDFIELD', KEY.offers(name), LIMIT.SAMPLE_OFFERS)) do
  if not is_complete(checkpoint) then
    table.insert(missing, checkpoint)
  end
end
for _, checkpoint in ipairs(loads) do
  local began_at, its_incarnation, owner = loading_claim(checkpoint)
  if owner == name and its_incarnation == incarnation then
    redis.call('PEXPIRE', KEY.loading(checkpoint), ttl_ms)
  elseif not owner and live_counts(checkpoint).serving == 0 then
    -- It has expired while Redis was away.
    claim_load(checkpoint, name, incarnation, NOW_MS, ttl_ms)
  end
end
redis.call('PEXPIRE', KEY.offers(name), LIMIT.OFFER_TTL_MS)
redis.call('PEXPIRE', KEY.OFFERED, 2 * LIMIT.OFFER_TTL_MS)
redis.call('PEXPIRE', KEY.CATALOG_VERSION, LIMIT.OFFER_TTL_MS)
redis.call('HSET', KEY.switching_worker(name), 'heartbeat_at', NOW_MS, unpack(fields))
redis.call('HSETNX', KEY.switching_worker(name), 'started_at', NOW_MS)
redis.call('PEXPIRE', KEY.switching_worker(name), ttl_ms)
return {'ok', conflicts, missing}
