-- One page of jobs, the newest first.
--
-- KEYS   none
-- ARGV   1 status, or ''   2 owner, or ''   3 most jobs of the page
--        4 creation time in ms and 5 id of the last job of the page before, or '' and ''
-- reply  {views as view.lua has them; creation time and id of where the next page begins, '' and '' at the end}

local status, owner, limit, last_at, last_id = unpack(ARGV, 1, 5)
local listing = status == '' and KEY.JOBS or KEY.jobs_with(status)
local views, offset, scanned = {}, 0, 0
local newest = last_at == '' and '+inf' or last_at

while true do
  local found = redis.call('ZREVRANGEBYSCORE', listing, newest, '-inf', 'WITHSCORES', 'LIMIT', offset, LIMIT.LIST_CHUNK)
  for index = 1, #found, 2 do
    local id, at = found[index], found[index + 1]
    -- Jobs of one ms stand in descending order of their ids.
    if at ~= last_at or id < last_id then
      scanned = scanned + 1
      if owner == '' or read(id, 'owner') == owner then
        table.insert(views, view(id) or nil)
      end
      -- A page may be short where many jobs are another owner's: the scan is bounded, and the next page goes on there.
      if #views == tonumber(limit) or scanned == LIMIT.LIST_SCAN then
        return {views, at, id}
      end
    end
  end
  if #found < 2 * LIMIT.LIST_CHUNK then
    return {views, '', ''}
  end
  offset = offset + LIMIT.LIST_CHUNK
end
