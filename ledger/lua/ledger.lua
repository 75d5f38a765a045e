-- The credit counter of one shard: many operations in one atomic call.
--
--   EVALSHA <sha> 3 pareta:{<shard>}:meta pareta:{<shard>}:moving:1 pareta:{<shard>}:moving:2
--     <epoch> <operations, JSON> <ms that closed holds are remembered> <seen seq> <run id of this Redis> [let in]
--
-- Every key shares the hash tag of KEYS[1], so the script also runs on Redis Cluster. The answer is one JSON text, written
-- by hand (see int): an array of the shard's last event number and then one array per operation, in their order.
--
-- Three guards stand before everything, and none has done anything. FENCED: this counter is at another epoch than the
-- caller. BEHIND: the caller has seen an event of this epoch that this counter does not have, so this Redis has lost
-- something. NOSCRIPT: the guardian let callers in on another run of a Redis, and this one (a restarted server, a promoted
-- replica) has not been checked. That it does not know the script would not show it: Redis 6.2 hands its scripts to a
-- replica with every full synchronization, and one that was a master before still has them.
--
-- Laws of this file:
--   * In every state granted = available + held + spent + returned, and available, held >= 0.
--   * Scripts are isolated, not rolled back: an operation makes all its checks first, and when it has an event, the
--     event is its first write. If that write is refused (out of memory, disk full), nothing was written.
--   * A number becomes text only through int(): Lua's own conversion and cjson print 1e+14. All numbers that this
--     file computes with stay below 2^53; sums that grow for ever (spent, granted) are HINCRBYed, 64 bits in Redis.
--   * Time is Redis's own.

local prefix = string.sub(KEYS[1], 1, -5)
local keep_ms = ARGV[3]

local function int(x)
  return string.format('%.0f', x + 0) -- + 0 turns -0 into 0, which HINCRBY would refuse
end

local meta = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'server')
if meta[1] ~= ARGV[1] then
  return redis.error_reply('FENCED this counter is at epoch ' .. (meta[1] or 'none') .. ', the caller at ' .. ARGV[1])
end
local epoch = ARGV[1]
local seq = tonumber(meta[2] or 0)
if seq < tonumber(ARGV[4]) then
  return redis.error_reply('BEHIND this counter is at event ' .. int(seq) .. ' of epoch ' .. epoch
    .. ', the caller has seen ' .. ARGV[4])
end
if (meta[3] or '') ~= ARGV[5] then
  if not ARGV[6] then return redis.error_reply('NOSCRIPT this run of Redis has not been checked') end
  redis.call('HSET', KEYS[1], 'server', ARGV[5])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The event's id is <epoch>-<seq>: should seq ever fall behind the stream, XADD refuses and nothing is written.
local function emit(kind, hold, org, amount, held, short, info, name, value)
  local this = int(seq + 1)
  if name then
    redis.call('XADD', prefix .. 'events', epoch .. '-' .. this, 'seq', this, 'epoch', epoch, 'kind', kind,
      'hold', hold, 'org', org, 'amount', int(amount), 'held', int(held), 'short', int(short), 't_ms', int(now),
      'info', info, name, value)
  else
    redis.call('XADD', prefix .. 'events', epoch .. '-' .. this, 'seq', this, 'epoch', epoch, 'kind', kind,
      'hold', hold, 'org', org, 'amount', int(amount), 'held', int(held), 'short', int(short), 't_ms', int(now),
      'info', info)
  end
  redis.call('HSET', KEYS[1], 'seq', this)
  seq = seq + 1
end

local function balance(org)
  local key = prefix .. 'acct:' .. org
  local row = redis.call('HMGET', key, 'available', 'held')
  return key, tonumber(row[1] or 0), tonumber(row[2] or 0)
end

-- Price of completion tokens: the rate per million is whole * 1e6 + rest, so no product passes 2^53.
local function price(tokens, whole, rest)
  local millionths = tokens * rest
  local tail = math.fmod(millionths, 1000000)
  local cost = tokens * whole + (millionths - tail) / 1000000
  if tail > 0 then cost = cost + 1 end
  return cost
end

-- Token buckets count in 1/60000 of a unit, so that a limit per minute refills by whole numbers each millisecond.
-- An absent bucket is full: it takes a minute to fill, and lives a minute after its last use.
local function bucket_level(name, per_minute)
  local capacity = per_minute * 60000
  local raw = redis.call('GET', prefix .. 'rate:' .. name)
  if not raw then return capacity end
  local level, at = string.match(raw, '^(%d+) (%d+)')
  local elapsed = now - tonumber(at)
  if elapsed < -1000 or elapsed > 60000 then return capacity end -- the clock was set back, or it is full anyway
  if elapsed < 0 then elapsed = 0 end
  return math.min(capacity, tonumber(level) + elapsed * per_minute)
end

local function set_bucket(name, level, per_minute)
  redis.call('SET', prefix .. 'rate:' .. name, int(level) .. ' ' .. int(now) .. ' ' .. int(per_minute), 'PX', 61000)
end

-- What is left of each limit and the ms until it is whole, in the order asked: first rates, then opens.
local function limits_text(rates, levels, opens, counts, taken)
  local parts = {}
  for _, rate in ipairs(rates) do
    local level = levels[rate[1]]
    parts[#parts + 1] = ',' .. int(math.floor(level / 60000)) .. ','
      .. int(math.ceil((rate[2] * 60000 - level) / rate[2]))
  end
  for i, open in ipairs(opens) do
    parts[#parts + 1] = ',' .. int(math.max(0, open[2] - counts[i] - taken)) .. ',0'
  end
  return table.concat(parts)
end

local function release_opens(hold, opens)
  for _, name in ipairs(opens) do
    redis.call('ZREM', prefix .. 'open:' .. name, hold)
  end
end

-- Replace the hold by what a repeat (and, of a reaped one, a correction) must still know. There are many of these
-- for a long time, so each field counts.
local function close_hold(key, hold, state, org, held, charged, short, opens)
  redis.call('DEL', key)
  if state == 'reaped' or short > 0 then
    redis.call('HSET', key, 'state', state, 'org', org, 'charged', int(charged), 'held', int(held), 'short', int(short))
  else
    redis.call('HSET', key, 'state', state, 'org', org, 'charged', int(charged))
  end
  redis.call('PEXPIRE', key, keep_ms)
  redis.call('ZREM', prefix .. 'expiry', hold)
  if opens then release_opens(hold, cjson.decode(opens)) end
end

-- HELD -> closed: charge what was used, give back the rest. Answers the charge and the shortfall.
local function finish(kind, state, key, hold, org, row, amount, info, name, value)
  local account, available, held_sum = balance(org)
  local held = tonumber(row.held)
  if held_sum < held then error('the account of hold ' .. hold .. ' does not cover it') end
  local charge = math.min(amount, held + available)
  local short = amount - charge
  emit(kind, hold, org, charge, held, short, info, name, value)
  redis.call('HSET', account, 'available', int(available + held - charge), 'held', int(held_sum - held))
  if charge > 0 then redis.call('HINCRBY', account, 'spent', int(charge)) end
  close_hold(key, hold, state, org, held, charge, short, row.opens)
  return charge, short
end

local function read_hold(key)
  local v = redis.call('HMGET', key, 'state', 'org', 'held', 'charged', 'short', 'opens')
  return { state = v[1], org = v[2], held = v[3], charged = v[4], short = v[5] or '0', opens = v[6] }
end

-- A reaped hold whose real usage arrives after all: one event for the difference, up or down.
local function correct(key, hold, org, row, amount, info)
  local account, available = balance(org)
  local before = tonumber(row.charged)
  local difference = math.min(amount - before, available)
  local total = before + difference
  local short = amount - total
  emit('late', hold, org, difference, tonumber(row.held), short, info)
  redis.call('HSET', account, 'available', int(available - difference))
  redis.call('HINCRBY', account, 'spent', int(difference))
  redis.call('HSET', key, 'state', amount > 0 and 'settled' or 'void', 'charged', int(total), 'short', int(short))
  redis.call('PEXPIRE', key, keep_ms)
  return '2,' .. int(total) .. ',' .. int(short)
end

local function refund(refunds)
  for _, pair in ipairs(refunds) do
    local raw = redis.call('GET', prefix .. 'rate:' .. pair[1])
    local per_minute = raw and tonumber(string.match(raw, ' (%d+)$'))
    if per_minute then
      local level = bucket_level(pair[1], per_minute) + pair[2] * 60000
      set_bucket(pair[1], math.min(level, per_minute * 60000), per_minute)
    end
  end
end

-- A client's idempotency key stands for one hold at a time: claimed with the hold, then either given back or kept with
-- the outcome, in the same step as the charge. Both live as long as closed holds are remembered.
local MOST_CLAIMS = 4096 -- per organization; beyond, the oldest are forgotten

local function claim_key(org, name)
  return prefix .. 'once:' .. org .. ':' .. name
end

-- 0 done · 1 its hold is open · 2 for another request · nil free (never used, given back, or its worker died)
local function claim_state(org, name, print)
  local row = redis.call('HMGET', claim_key(org, name), 'state', 'print', 'hold')
  if not row[1] then return nil end
  if row[2] ~= print then return 2 end
  if row[1] == 'done' then return 0 end
  if redis.call('HGET', prefix .. 'hold:' .. row[3], 'state') == 'held' then return 1 end
  return nil
end

local function take_claim(org, name, print, hold)
  local key, index = claim_key(org, name), prefix .. 'onces:' .. org
  redis.call('DEL', key)
  redis.call('HSET', key, 'state', 'running', 'print', print, 'hold', hold)
  redis.call('PEXPIRE', key, keep_ms)
  redis.call('ZADD', index, int(now), name)
  redis.call('PEXPIRE', index, keep_ms)
  if redis.call('ZCARD', index) > MOST_CLAIMS then
    redis.call('DEL', claim_key(org, redis.call('ZPOPMIN', index)[1]))
  end
end

local function end_claim(org, hold, once)
  if not once or not once[1] then return end
  local key = claim_key(org, once[1])
  if redis.call('HGET', key, 'hold') ~= hold then return end
  if once[2] then
    redis.call('HSET', key, 'state', 'done', 'outcome', once[2])
    redis.call('PEXPIRE', key, keep_ms)
  else
    redis.call('DEL', key)
    redis.call('ZREM', prefix .. 'onces:' .. org, once[1])
  end
end

local run = {}

-- hold, id, org, fingerprint, fixed, whole, rest, tokens, expires ms, [[rate, per minute, cost]], [[open, at most]], info,
--   [claim], whether fewer tokens will do
-- 0 held: amount, tokens, limits · 1 short: available, returned ever, limits · 2 limited: index, wait ms, too large, limits
-- 3 conflict · 4 claimed: see claim_state
function run.hold(a)
  local hold, org, print, fixed, whole, rest, wanted = a[2], a[3], a[4], a[5], a[6], a[7], a[8]
  local rates, opens = a[10], a[11]
  local key = prefix .. 'hold:' .. hold

  local old = redis.call('HMGET', key, 'state', 'org', 'print', 'held', 'tokens')
  if old[1] and not (old[1] == 'held' and old[2] == org and old[3] == print) then return '3' end
  local claim = a[13] and a[13][1]
  if claim and not old[1] then
    local state = claim_state(org, claim, print)
    if state then return '4,' .. int(state) end
  end

  local limited, wait, too_large = -1, -1, '0'
  local levels, counts = {}, {}
  for i, rate in ipairs(rates) do
    local name, per_minute, cost = rate[1], rate[2], rate[3] * 60000
    if not levels[name] then levels[name] = bucket_level(name, per_minute) end
    local missing = cost - levels[name]
    if missing > 0 then
      local ms = math.ceil(missing / per_minute)
      if ms > wait then limited, wait = i - 1, ms end
      if rate[3] > per_minute then too_large = '1' end
    elseif not old[1] then
      levels[name] = levels[name] - cost
    end
  end
  for i, open in ipairs(opens) do
    counts[i] = redis.call('ZCOUNT', prefix .. 'open:' .. open[1], '(' .. int(now), '+inf')
    if counts[i] >= open[2] and wait < 1000 then limited, wait = #rates + i - 1, 1000 end
  end
  if old[1] then return '0,' .. old[4] .. ',' .. old[5] .. limits_text(rates, levels, opens, counts, 0) end
  if limited >= 0 then
    for _, rate in ipairs(rates) do levels[rate[1]] = bucket_level(rate[1], rate[2]) end -- nothing was taken
    return '2,' .. int(limited) .. ',' .. int(wait) .. ',' .. too_large
      .. limits_text(rates, levels, opens, counts, 0)
  end

  local account, available, held_sum = balance(org)
  local tokens = wanted
  local amount = fixed + price(tokens, whole, rest)
  if amount > available then
    local low, high = 0, wanted -- low tokens are affordable (if any are), high are not
    if fixed > available or a[14] == 0 then high = 0 end
    while high - low > 1 do
      local middle = math.floor((low + high) / 2)
      if fixed + price(middle, whole, rest) <= available then low = middle else high = middle end
    end
    if low == 0 then
      for _, rate in ipairs(rates) do levels[rate[1]] = bucket_level(rate[1], rate[2]) end
      return '1,' .. int(available) .. ',' .. (redis.call('HGET', account, 'returned') or '0')
        .. limits_text(rates, levels, opens, counts, 0)
    end
    tokens = low
    amount = fixed + price(tokens, whole, rest)
  end

  redis.call('HSET', account, 'available', int(available - amount), 'held', int(held_sum + amount))
  if #opens > 0 then
    local names = {}
    for i, open in ipairs(opens) do
      names[i] = open[1]
      redis.call('ZREMRANGEBYSCORE', prefix .. 'open:' .. open[1], '-inf', int(now))
      redis.call('ZADD', prefix .. 'open:' .. open[1], int(now + a[9]), hold)
    end
    redis.call('HSET', key, 'state', 'held', 'org', org, 'print', print, 'held', int(amount), 'tokens', int(tokens),
      'info', a[12], 'opens', cjson.encode(names))
  else
    redis.call('HSET', key, 'state', 'held', 'org', org, 'print', print, 'held', int(amount), 'tokens', int(tokens),
      'info', a[12])
  end
  redis.call('ZADD', prefix .. 'expiry', int(now + a[9]), hold)
  if claim then take_claim(org, claim, print, hold) end
  for _, rate in ipairs(rates) do set_bucket(rate[1], levels[rate[1]], rate[2]) end
  return '0,' .. int(amount) .. ',' .. int(tokens) .. limits_text(rates, levels, opens, counts, 1)
end

-- recall, org, claim, fingerprint
-- As claim_state, and of one that is done its outcome; 3 free
function run.recall(a)
  local state = claim_state(a[2], a[3], a[4])
  if not state then return '3' end
  if state ~= 0 then return int(state) end
  return '0,' .. cjson.encode(redis.call('HGET', claim_key(a[2], a[3]), 'outcome') or '')
end

-- settle, id, org, amount, [[rate, units to give back]], [open], info, [claim, outcome to keep], whether less will do
-- 0 fresh, 1 repeated, 2 late: charged, short · 3 unknown · 4 short, nothing done: what could be charged, returned ever
function run.settle(a)
  local hold, org = a[2], a[3]
  local key = prefix .. 'hold:' .. hold
  local row = read_hold(key)
  if not row.state then
    end_claim(org, hold, a[8]) -- the hold was lost with an epoch, its client's idempotency key perhaps not
    return '3'
  end
  if row.org ~= org then return '3' end
  if a[9] == 0 and (row.state == 'held' or row.state == 'reaped') then
    local account, available = balance(org)
    local most = available + tonumber(row.state == 'held' and row.held or row.charged)
    if a[4] > most then return '4,' .. int(most) .. ',' .. (redis.call('HGET', account, 'returned') or '0') end
  end
  if row.state == 'reaped' then
    local answer = correct(key, hold, org, row, a[4], a[7])
    end_claim(org, hold, a[8])
    return answer
  end
  if row.state ~= 'held' then return '1,' .. row.charged .. ',' .. row.short end
  local charge, short = finish('settle', 'settled', key, hold, org, row, a[4], a[7])
  end_claim(org, hold, a[8])
  refund(a[5])
  return '0,' .. int(charge) .. ',' .. int(short)
end

-- void, id, org, 0, [[rate, units to give back]], [open], info, [claim, outcome to keep]
-- As settle; 3 unknown: a tombstone was left, so that a HOLD that comes late fails.
function run.void(a)
  local hold, org = a[2], a[3]
  local key = prefix .. 'hold:' .. hold
  local row = read_hold(key)
  if not row.state then
    close_hold(key, hold, 'void', org, 0, 0, 0, nil)
    release_opens(hold, a[6])
    end_claim(org, hold, a[8])
    return '3'
  end
  if row.org ~= org then return '3' end
  if row.state == 'reaped' then return correct(key, hold, org, row, 0, a[7]) end
  if row.state ~= 'held' then return '1,' .. row.charged .. ',' .. row.short end
  finish('void', 'void', key, hold, org, row, 0, a[7])
  end_claim(org, hold, a[8])
  refund(a[5])
  return '0,0,0'
end

-- beats, [[id, accrued, usage JSON, expires ms]]
-- The positions (from 0) of those that are not HELD any more.
function run.beats(a)
  local lost = {}
  for i, beat in ipairs(a[2]) do
    local key = prefix .. 'hold:' .. beat[1]
    local row = redis.call('HMGET', key, 'state', 'accrued', 'opens')
    if row[1] == 'held' then
      redis.call('HSET', key, 'accrued', int(math.max(beat[2], tonumber(row[2] or 0))), 'beat', beat[3])
      redis.call('ZADD', prefix .. 'expiry', int(now + beat[4]), beat[1])
      if row[3] then
        for _, name in ipairs(cjson.decode(row[3])) do
          redis.call('ZADD', prefix .. 'open:' .. name, int(now + beat[4]), beat[1])
        end
      end
    else
      lost[#lost + 1] = int(i - 1)
    end
  end
  return table.concat(lost, ',')
end

-- extend, id, org, total
-- 0 extended: held · 1 short: held, available, returned ever · 2 not HELD. The total makes a repeat harmless.
function run.extend(a)
  local key = prefix .. 'hold:' .. a[2]
  local row = read_hold(key)
  if row.state ~= 'held' or row.org ~= a[3] then return '2' end
  local held = tonumber(row.held)
  if a[4] <= held then return '0,' .. int(held) end
  local account, available, held_sum = balance(a[3])
  local more = a[4] - held
  if more > available then
    return '1,' .. int(held) .. ',' .. int(available) .. ',' .. (redis.call('HGET', account, 'returned') or '0')
  end
  redis.call('HSET', account, 'available', int(available - more), 'held', int(held_sum + more))
  redis.call('HSET', key, 'held', int(a[4]))
  return '0,' .. int(a[4])
end

-- grant, org, grant_seq, amount, most that may be available and held, epoch that it was made for
-- 0 applied · 1 repeated · 2 gap · 3 made for another epoch, whose credit is frozen by now
function run.grant(a)
  if int(a[6]) ~= epoch then return '3' end
  local account, available, held_sum = balance(a[2])
  local last = tonumber(redis.call('HGET', account, 'grant_seq') or 0)
  if a[3] <= last then return '1' end
  if a[3] ~= last + 1 then return '2' end
  if available + held_sum + a[4] > a[5] then error('the account would hold more than this script can count') end
  emit('grant', '', a[2], a[4], 0, 0, '', 'grant_seq', int(a[3]))
  redis.call('HSET', account, 'available', int(available + a[4]), 'grant_seq', int(a[3]))
  redis.call('HINCRBY', account, 'granted', int(a[4]))
  return '0'
end

-- give_back, org, grant_seq, most to keep
-- How much was taken from what is available and returned to Postgres; nothing if another grant has come meanwhile.
-- A repeat finds nothing left to return.
function run.give_back(a)
  local account, available = balance(a[2])
  local amount = available - a[4]
  if amount <= 0 or tonumber(redis.call('HGET', account, 'grant_seq') or 0) ~= a[3] then return '0' end
  emit('return', '', a[2], amount, 0, 0, '')
  redis.call('HSET', account, 'available', int(a[4]))
  redis.call('HINCRBY', account, 'returned', int(amount))
  return int(amount)
end

-- levels, [org]
-- Of each: available, held, the number of its last grant.
function run.levels(a)
  local rows = {}
  for i, org in ipairs(a[2]) do
    local row = redis.call('HMGET', prefix .. 'acct:' .. org, 'available', 'held', 'grant_seq')
    rows[i] = '[' .. (row[1] or '0') .. ',' .. (row[2] or '0') .. ',' .. (row[3] or '0') .. ']'
  end
  return table.concat(rows, ',')
end

-- reap, at most
-- How many were reaped, how many could not be. What can't be is put off, so that it never bars the way of others.
function run.reap(a)
  local reaped, failed = 0, 0
  for _, hold in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'expiry', '-inf', int(now), 'LIMIT', 0, a[2])) do
    local key = prefix .. 'hold:' .. hold
    local row = read_hold(key)
    if row.state ~= 'held' then
      redis.call('ZREM', prefix .. 'expiry', hold)
    else
      local rest = redis.call('HMGET', key, 'accrued', 'info', 'beat')
      local ok = pcall(finish, 'reap', 'reaped', key, hold, row.org, row, tonumber(rest[1] or 0), rest[2] or '',
        rest[3] and 'beat', rest[3])
      if ok then
        reaped = reaped + 1
      else
        failed = failed + 1
        pcall(redis.call, 'ZADD', prefix .. 'expiry', int(now + 10000), hold)
      end
    end
  end
  return int(reaped) .. ',' .. int(failed)
end

-- One operation that fails must not take the answers of the others with it.
local answers = { '' }
for i, operation in ipairs(cjson.decode(ARGV[2])) do
  local ok, answer = pcall(run[operation[1]], operation)
  if not ok then
    answer = '-1,' .. cjson.encode(type(answer) == 'table' and answer.err or tostring(answer))
  end
  answers[i + 1] = '[' .. answer .. ']'
end
answers[1] = int(seq)
return '[' .. table.concat(answers, ',') .. ']'
