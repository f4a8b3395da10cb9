-- Reads one page of jobs, newest first.
--
-- KEYS   none
-- ARGV   1 status, or ''   2 owner, or ''   3 largest number of jobs on the page
--        4 creation time in ms and 5 id of the last job of the previous page, or '' and ''
-- reply  {jobs as in view.lua; creation time in ms and id of the last job read, as arguments 4 and 5 for the next page,
--        or '' and '' if this is the last page}

local status, owner, limit, last_at, last_id = unpack(ARGV, 1, 5)
local listing = status == '' and KEY.JOBS or KEY.jobs_with(status)
local views, offset, scanned = {}, 0, 0
local newest = last_at == '' and '+inf' or last_at

while true do
  local found = redis.call('ZREVRANGEBYSCORE', listing, newest, '-inf', 'WITHSCORES', 'LIMIT', offset, LIMIT.LIST_CHUNK)
  for index = 1, #found, 2 do
    local id, at = found[index], found[index + 1]
    -- Jobs of the same millisecond are in descending order of their ids.
    if at ~= last_at or id < last_id then
      scanned = scanned + 1
      if owner == '' or get_fields(id, 'owner') == owner then
        table.insert(views, view(id) or nil)
      end
      -- The scan is bounded. A page is short if many jobs belong to other owners; the next page continues from there.
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
