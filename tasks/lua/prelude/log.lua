-- The token log of a job.

-- Returns the text in a job's log.
local function logged_text(id)
  local text = {}
  for _, entry in ipairs(redis.call('XRANGE', KEY.tokens(id), '-', '+')) do
    local values = entry[2]
    for index = 1, #values, 2 do
      if values[index] == 'pieces' then
        table.insert(text, table.concat(cjson.decode(values[index + 1])))
      end
    end
  end
  return table.concat(text)
end

-- Returns the number of tokens in a job's log.
local function log_length(id)
  local last = redis.call('XREVRANGE', KEY.tokens(id), '+', '-', 'COUNT', 1)[1]
  return last and tonumber(string.match(last[1], '^%d+')) or 0
end

-- Returns the id of the next entry without tokens, in a log that holds `tokens` tokens.
local function next_mark_id(id, tokens)
  local last = redis.call('XREVRANGE', KEY.tokens(id), '+', '-', 'COUNT', 1)[1]
  local count = last and string.match(last[1], '^' .. tokens .. '%-(%d+)$') or 0
  return tokens .. '-' .. format_int(count + 1)
end

-- Appends tokens to a log that holds `length` tokens. `before` is the length that the sender assumes. `ids` are token
-- ids, separated by spaces. `pieces` is a JSON list with one text for each token. Tokens that the log already holds are
-- skipped. Returns the new length, or nil if tokens between the log and the new ones are missing.
local function append_tokens(id, length, before, ids, pieces)
  if before > length then
    return nil
  end
  local list = {}
  for token in string.gmatch(ids, '%d+') do
    table.insert(list, token)
  end
  local after = before + #list
  if after <= length then
    return length
  end
  local known = length - before
  if known > 0 then
    ids = table.concat(list, ' ', known + 1)
    local all, rest = cjson.decode(pieces), {}
    for index = known + 1, #all do
      table.insert(rest, all[index])
    end
    pieces = cjson.encode(rest)
  end
  -- First the log: if it is damaged, the record must not count the tokens.
  redis.call('XADD', KEY.tokens(id), format_int(after) .. '-0', 'ids', ids, 'pieces', pieces)
  -- A new token resets the count of losses without progress.
  redis.call('HSET', KEY.job(id), 'tokens', after, 'losses_in_a_row', 0)
  redis.call('HSETNX', KEY.job(id), 'first_token_at', NOW_MS)
  return after
end
