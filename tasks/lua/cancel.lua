-- Cancels a job: one that waits is over at once, one that runs is asked to stop. Sent twice it acts once.
--
-- KEYS   none
-- ARGV   1 job id
-- reply  as view.lua, after the cancel

local id = ARGV[1]
local status, requested_at, tokens, worker = read(id, 'status', 'cancel_requested_at', 'tokens', 'worker')

if not status then
  return false
end
if not is_terminal(status) then
  if not requested_at then
    write(id, 'cancel_requested_at', NOW_MS, 'cancel_tokens', tokens)
  end
  if status == 'queued' then
    finish_cancelled(id)
  else
    -- Rung at each call: the first bell may have been lost.
    redis.call('PUBLISH', KEY.worker_channel(worker), id)
    if not requested_at then
      notify_state(id)
    end
  end
end
return view(id)
