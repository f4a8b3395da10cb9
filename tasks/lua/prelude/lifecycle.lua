-- How a job ends, how it returns to the backlog, and how a worker stays registered.

-- Removes finished jobs whose records have expired from the listing, at most a limited number of them. If no job is live,
-- the listing itself expires with the last record. Returns how many were removed.
local function prune_listing()
  local expired = redis.call('ZRANGEBYSCORE', KEY.EXPIRIES, '-inf', NOW_MS, 'LIMIT', 0, LIMIT.PRUNE_AT_ONCE)
  if #expired > 0 then
    redis.call('ZREM', KEY.EXPIRIES, unpack(expired))
    redis.call('ZREM', KEY.JOBS, unpack(expired))
    for _, status in ipairs({'succeeded', 'failed', 'cancelled', 'expired'}) do
      redis.call('ZREM', KEY.jobs_with(status), unpack(expired))
    end
  end
  if redis.call('EXISTS', KEY.jobs_with('queued'), KEY.jobs_with('running')) == 0 then
    redis.call('DEL', KEY.RESERVED)
    local last = redis.call('ZREVRANGE', KEY.EXPIRIES, 0, 0, 'WITHSCORES')[2]
    if last then
      redis.call('PEXPIREAT', KEY.JOBS, last)
      redis.call('PEXPIREAT', KEY.EXPIRIES, last)
    end
  else
    redis.call('PERSIST', KEY.JOBS)
    redis.call('PERSIST', KEY.EXPIRIES)
  end
  return #expired
end

-- Updates a running average in a hash. The newest value has a fixed weight.
local function update_average(key, field, value)
  local before = finite(redis.call('HGET', key, field))
  if before then
    value = before + LIMIT.PACE_WEIGHT * (value - before)
  end
  redis.call('HSET', key, field, string.format('%.6g', value))
end

-- Records the durations of a job that is about to succeed, and the error of its own estimate. Jobs with more than one
-- attempt do not count, because their durations include the time of a lost worker.
local function record_pace(id, checkpoint)
  local attempt, max_tokens, tokens, created_at, started_at, first_token_at, predicted = get_fields(
    id, 'attempt', 'max_tokens', 'tokens', 'created_at', 'started_at', 'first_token_at', 'predicted_ms')
  if attempt ~= '1' or not first_token_at then
    return
  end
  local pace = KEY.pace(checkpoint)
  update_average(pace, 'first_token_ms', first_token_at - started_at)
  if tonumber(tokens) > 1 then
    update_average(pace, 'ms_per_token', (NOW_MS - first_token_at) / (tokens - 1))
  end
  update_average(pace, 'share', tokens / max_tokens)
  redis.call('PEXPIRE', pace, LIMIT.PACE_TTL_MS)
  if predicted then
    redis.call('LPUSH', KEY.accuracy(checkpoint), string.format('%.4g', (NOW_MS - created_at) / predicted))
    redis.call('LTRIM', KEY.accuracy(checkpoint), 0, LIMIT.ACCURACY_WINDOW - 1)
    redis.call('PEXPIRE', KEY.accuracy(checkpoint), LIMIT.PACE_TTL_MS)
  end
end

-- Ends a job. `outcome` has `status`, `finish_reason` and `completion`; `error` (JSON) if the job failed; and
-- `cancel_tokens` if its worker was notified of a cancel: the number of tokens that the worker had at that time. Tokens
-- in the log at the time of the cancel request count as before the cancel in any case.
local function finish(id, outcome)
  local checkpoint, created_at, result_ttl, requested_at, cancel_tokens, tokens, key_hash, key_ttl, reply_to =
    get_fields(id, 'checkpoint', 'created_at', 'result_ttl_ms', 'cancel_requested_at', 'cancel_tokens',
      'tokens', 'idempotency', 'idempotency_ttl_ms', 'reply_to')
  local expires_at = NOW_MS + result_ttl
  if outcome.status == 'succeeded' then
    record_pace(id, checkpoint)
  end
  -- Before the record changes, because both read the record.
  leave_queue(id, checkpoint)
  release_memory(id)
  set_fields(id, 'status', outcome.status, 'finish_reason', outcome.finish_reason, 'completion', outcome.completion,
    'finished_at', NOW_MS, 'expires_at', expires_at)
  if outcome.error then
    redis.call('HSET', KEY.job(id), 'error', outcome.error)
  end
  if requested_at then
    local before = math.max(tonumber(cancel_tokens), outcome.cancel_tokens or 0)
    redis.call('HSET', KEY.job(id), 'cancel_acked_at', NOW_MS, 'cancel_tokens_after', tokens - before)
  end
  redis.call('HDEL', KEY.job(id), 'message', 'claim', 'reply_to')
  list_ended(id, outcome.status, created_at, expires_at)
  if key_hash then
    redis.call('PEXPIRE', KEY.idempotency(key_hash), key_ttl)
  end
  prune_listing()
  notify_state(id)
  notify_submitter(id, reply_to)
  dispatch(checkpoint)
end

-- Ends a job as cancelled, with the text in its log.
local function finish_cancelled(id)
  finish(id, {status = 'cancelled', finish_reason = 'cancelled', completion = logged_text(id)})
end

-- Ends a job as failed, with the text in its log. `failure` is JSON.
local function finish_failed(id, failure)
  finish(id, {status = 'failed', finish_reason = 'error', completion = logged_text(id), error = failure})
end

-- Ends a job that has exceeded a time limit: as expired if it never started, else as failed with the text in its log.
local function finish_overdue(id)
  local attempt, deadline_at = get_fields(id, 'attempt', 'deadline_at')
  local outcome = {status = 'failed', error = FAILURE.DEADLINE_EXCEEDED}
  if attempt == '0' then
    local at_deadline = deadline_at and NOW_MS >= tonumber(deadline_at)
    outcome = {status = 'expired', error = at_deadline and FAILURE.EXPIRED or FAILURE.START_TIMEOUT}
  end
  outcome.finish_reason, outcome.completion = 'deadline', logged_text(id)
  finish(id, outcome)
end

-- Takes a running job from its worker and puts it at the head of the backlog; the caller dispatches. `lost` is true if
-- the worker or its engine was lost, which counts as a loss, and false if the worker released the job. The job ends
-- instead if a cancel was requested, if it has too many losses (with `failure`, JSON, or else as WORKER_LOST), or if it
-- has exceeded a time limit.
local function return_to_backlog(id, lost, failure)
  local checkpoint, score, created_at, losses, in_a_row, requested_at = get_fields(
    id, 'checkpoint', 'score', 'created_at', 'losses', 'losses_in_a_row', 'cancel_requested_at')
  if requested_at then
    return finish_cancelled(id)
  end
  if lost then
    losses, in_a_row = losses + 1, in_a_row + 1
    redis.call('HSET', KEY.job(id), 'losses', losses, 'losses_in_a_row', in_a_row)
    if in_a_row >= LIMIT.MAX_LOSSES_IN_A_ROW or losses >= LIMIT.MAX_LOSSES then
      return finish_failed(id, failure or FAILURE.WORKER_LOST)
    end
  end
  local left = time_left(id)
  if left and left <= 0 then
    return finish_overdue(id)
  end
  leave_queue(id, checkpoint)
  set_fields(id, 'status', 'queued', 'run_ms', run_ms(id))
  redis.call('HDEL', KEY.job(id), 'claim', 'worker', 'incarnation')
  enter_queue(id, checkpoint, resumed_score(score))
  redis.call('ZREM', KEY.jobs_with('running'), id)
  redis.call('ZADD', KEY.jobs_with('queued'), created_at, id)
  notify_state(id)
end

-- Takes a job, which has a record, from a worker that was lost. A job with a damaged record fails. Returns whether the job
-- ran for this checkpoint.
local function return_lost(id, checkpoint)
  local damaged = damaged_fields(id)
  if #damaged == 0 then
    local status, its_checkpoint = get_fields(id, 'status', 'checkpoint')
    if status ~= 'running' then
      redis.call('ZREM', KEY.running(checkpoint), id)
      return false
    elseif its_checkpoint == checkpoint then
      return_to_backlog(id, true)
      return true
    end
    damaged = {'checkpoint'}
  end
  fail_damaged(id, damaged)
  return false
end

-- Checks that a worker has the weights that a waiting job was accepted for. Returns nil if it has them. Otherwise:
-- 'superseded' if the checkpoint's card still has the job's weights: the worker has old ones, and the job is requeued.
-- 'digest' if the card has other weights: no worker still has the job's weights, and the job fails.
local function refuse_wrong_weights(id, digest)
  local checkpoint, accepted = get_fields(id, 'checkpoint', 'digest')
  if digest == accepted then
    return nil
  end
  if redis.call('HGET', KEY.card(checkpoint), 'digest') == accepted then
    requeue(id)
    return 'superseded'
  end
  finish_failed(id, FAILURE.CHECKPOINT_CHANGED)
  return 'digest'
end

-- Stores a worker's heartbeat, and counts its slots if it takes jobs. `fields` are those of the worker's hash: field,
-- value, ... Returns whether the worker's slots changed, or it was not live before; the caller dispatches then.
local function store_heartbeat(name, checkpoint, ttl_ms, fields)
  local ends_at = redis.call('ZSCORE', KEY.workers(checkpoint), name)
  redis.call('HSET', KEY.worker(name), 'heartbeat_at', NOW_MS, unpack(fields))
  redis.call('HSETNX', KEY.worker(name), 'started_at', NOW_MS)
  redis.call('PEXPIRE', KEY.worker(name), ttl_ms)
  redis.call('ZADD', KEY.workers(checkpoint), NOW_MS + ttl_ms, name)
  local changed = count_worker(checkpoint, name, share_of(name))
  expire_workers(checkpoint)
  return changed or not ends_at or tonumber(ends_at) <= NOW_MS
end
