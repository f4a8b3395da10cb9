-- Cancels a job: a waiting job ends at once, the worker of a running job is asked to stop it. Idempotent.
--
-- KEYS   none
-- ARGV   1 job id
-- reply  the job after the cancel, as in view.lua

write_even_if_full()
local id = ARGV[1]
local status, requested_at, tokens, worker = get_fields(id, 'status', 'cancel_requested_at', 'tokens', 'worker')

if not status then
  return false
end
if not is_terminal(status) then
  if not requested_at then
    set_fields(id, 'cancel_requested_at', NOW_MS, 'cancel_tokens', tokens)
  end
  if status == 'queued' then
    finish_cancelled(id)
  else
    -- At each call: the first notification may have been lost.
    notify_worker(id, worker)
    if not requested_at then
      notify_state(id)
    end
  end
end
return view(id)
