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

-- Appends the log-probabilities of a prompt to a log without tokens; nothing if there are none.
local function append_prompt_logprobs(id, prompt_logprobs)
  if prompt_logprobs ~= '' then
    redis.call('XADD', KEY.tokens(id), next_mark_id(id, '0'), 'prompt_logprobs', prompt_logprobs)
  end
end

-- Appends tokens to a log that holds `length` tokens. `before` is the length that the sender assumes. `ids` are token
-- ids, separated by spaces. `pieces` is a JSON list with one text for each token. `logprobs` has as many bytes for each
-- token, or none. Tokens that the log already holds are skipped. `prompt_logprobs` are those of the prompt, or ''; they
-- are written before the first token. Returns the new length, or nil if tokens between the log and the new ones are
-- missing.
local function append_tokens(id, length, before, ids, pieces, logprobs, prompt_logprobs)
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
    logprobs = string.sub(logprobs, #logprobs / #list * known + 1)
    local all, rest = cjson.decode(pieces), {}
    for index = known + 1, #all do
      table.insert(rest, all[index])
    end
    pieces = cjson.encode(rest)
  end
  -- First the log: if it is damaged, the record must not count the tokens.
  if length == 0 then
    append_prompt_logprobs(id, prompt_logprobs)
  end
  local fields = {'ids', ids, 'pieces', pieces}
  if logprobs ~= '' then
    table.insert(fields, 'logprobs')
    table.insert(fields, logprobs)
  end
  redis.call('XADD', KEY.tokens(id), format_int(after) .. '-0', unpack(fields))
  -- A new token resets the count of losses without progress.
  redis.call('HSET', KEY.job(id), 'tokens', after, 'losses_in_a_row', 0)
  redis.call('HSETNX', KEY.job(id), 'first_token_at', NOW_MS)
  return after
end
