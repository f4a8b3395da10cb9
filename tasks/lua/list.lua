-- Reads one page of jobs, newest first.
--
-- KEYS   none
-- ARGV   1 status, or ''   2 owner, or ''   3 largest number of jobs on the page
--        4 creation time in ms and 5 id of the last job of the previous page, or '' and ''
-- reply  {jobs as in view.lua; creation time in ms and id of the job after which the next page begins, as arguments 4
--        and 5 for it, or '' and '' if this is the last page}
--
-- A page also ends before a job with which its prompts and texts would exceed LIST_BYTES.

local status, owner, limit, last_at, last_id = unpack(ARGV, 1, 5)
local listing = status == '' and KEY.JOBS or KEY.jobs_with(status)
local views, bytes, offset, scanned = {}, 0, 0, 0
local newest = last_at == '' and '+inf' or last_at
-- The last job that was read and is not on a later page.
local read_at, read_id

-- Returns whether a job exists and belongs on a page.
local function is_listed(id)
  -- A record that is no hash has no owner.
  local its_owner = redis.pcall('HGET', KEY.job(id), 'owner')
  if type(its_owner) == 'table' then
    return owner == ''
  end
  return its_owner and (owner == '' or its_owner == owner)
end

while true do
  local found = redis.call('ZREVRANGEBYSCORE', listing, newest, '-inf', 'WITHSCORES', 'LIMIT', offset, LIMIT.LIST_CHUNK)
  for index = 1, #found, 2 do
    local id, at = found[index], found[index + 1]
    -- Jobs of the same millisecond are in descending order of their ids.
    if at ~= last_at or id < last_id then
      -- The scan is bounded. A page is short if many jobs belong to other owners; the next page continues from there.
      if scanned == LIMIT.LIST_SCAN then
        return {views, read_at, read_id}
      end
      scanned = scanned + 1
      if is_listed(id) then
        bytes = bytes + redis.call('HSTRLEN', KEY.job(id), 'input') + redis.call('HSTRLEN', KEY.job(id), 'completion')
        -- The page is full, and this job shows that it is not the last one.
        if #views == tonumber(limit) or (#views > 0 and bytes > LIMIT.LIST_BYTES) then
          return {views, read_at, read_id}
        end
        table.insert(views, view(id))
      end
      read_at, read_id = at, id
    end
  end
  if #found < 2 * LIMIT.LIST_CHUNK then
    return {views, '', ''}
  end
  offset = offset + LIMIT.LIST_CHUNK
end
