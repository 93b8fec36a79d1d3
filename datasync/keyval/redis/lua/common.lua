-- The keys and functions that all scripts share. Every key of a store, data keys included, is in one slot of a cluster.
local LOG, INDEX, REVISIONS, STATE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
-- These need not exist; while a cluster moves the slot, it would send away a script that declares a key that does not.
local BASE = string.sub(STATE, 1, -6)
local DEADLINES, LEASES, OWNERS = BASE .. 'deadlines', BASE .. 'leases', BASE .. 'owners'
local LOST, DIGESTS, REFUSED = BASE .. 'lost', BASE .. 'digests', BASE .. 'refused'
local call, pcall = redis.call, redis.pcall
-- The first arguments of a script that may write: epoch and token for new data, and the limits of the history.
local TOKEN, MAX_COMMITS, MAX_AGE, MAX_BYTES = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local time = call('TIME')
local NOW = time[1] * 1000 + math.floor(time[2] / 1000)

-- True if nothing expires, is leased or was refused: then there is less to look at.
local PLAIN = call('EXISTS', DEADLINES, LEASES, OWNERS, REFUSED) == 0

local function whole(number) return string.format('%d', number) end

-- Of the last commit: its revision, the bytes of the log up to it, its token; and '1' if digests are kept.
local last, bytes, previous, tracked

-- The current revision. Data without a state is new, or another program removed the state: a new epoch begins.
local function current()
  if last then return last end
  local state = call('HMGET', STATE, 'last', 'bytes', 'token', 'tracked')
  if state[1] then
    last, bytes, previous, tracked = tonumber(state[1]), tonumber(state[2]), state[3], state[4]
    return last
  end
  last, bytes, previous = 1, 0, TOKEN
  call('DEL', LOG, REVISIONS, DIGESTS)
  call('HSET', STATE, 'epoch', TOKEN, 'last', '1', 'token', TOKEN, 'bytes', '0')
  call('XADD', LOG, '1-0', 't', TOKEN, 'p', '', 'o', '', 'm', whole(NOW), 'b', '0')
  return 1
end

-- Append one commit to the log: the encoded operations. The data was written before.
local function append(token, operations)
  local payload = table.concat(operations)
  last = current() + 1
  bytes = bytes + #payload + 128
  call('XADD', LOG, whole(last) .. '-0', 't', token, 'p', previous, 'o', payload, 'm', whole(NOW), 'b', whole(bytes))
  call('HSET', STATE, 'last', whole(last), 'bytes', whole(bytes), 'token', token)
  previous = token
  if last % 64 ~= 0 and #payload <= 65536 then return last end
  -- Remove the oldest entries but the one at the cut, so that a position there can still be checked.
  local cut
  local count = 1 -- most often, the first entry stays
  while true do
    local from, stop = cut and '(' .. whole(cut) .. '-0' or '-', false
    local entries = call('XRANGE', LOG, from, '+', 'COUNT', count)
    for _, entry in ipairs(entries) do
      local id, f = tonumber(string.match(entry[1], '^(%d+)')), entry[2]
      if id < last and (last - id >= MAX_COMMITS or NOW - f[8] > MAX_AGE or bytes - f[10] > MAX_BYTES) then
        cut = id
      else
        stop = true
        break
      end
    end
    if stop or #entries < count then break end
    count = 100
  end
  if cut then call('XTRIM', LOG, 'MINID', whole(cut) .. '-0') end
  return last
end

local function put_entry(key, value) return struct.pack('>c1I4I4', 'P', #key, #value) .. key .. value end
local function delete_entry(key) return struct.pack('>c1I4I4', 'D', #key, 0) .. key end

-- Forget what the store knows of a key that is no longer there.
local function forget(key)
  call('ZREM', INDEX, key)
  call('HDEL', REVISIONS, key)
  call('ZREM', DEADLINES, key)
end

local reaped = 0
-- Delete keys, some of which may have expired already, as one commit.
local function delete_all(keys)
  if #keys == 0 then return end
  table.sort(keys)
  local operations = {}
  for place, key in ipairs(keys) do
    call('DEL', key)
    forget(key)
    call('HDEL', DIGESTS, key)
    operations[place] = delete_entry(key)
  end
  reaped = reaped + 1
  append(TOKEN .. '.' .. reaped, operations)
end

-- Each run of a script makes its functions anew, these only if there is something for them to do.
local function nothing() end
local unbind, end_lease, reap = nothing, nothing, nothing
if not PLAIN then
  -- Release a key from the lease that it is bound to, or was lost with.
  function unbind(key)
    local owner = call('HGET', OWNERS, key)
    if not owner then return end
    call('HDEL', OWNERS, key)
    if string.sub(owner, 1, 1) == '-' then call('ZREM', LOST, key)
    else call('SREM', LEASES .. ':' .. owner, key) end
  end

  -- End a lease; its keys stay marked as lost with it for an hour, so that its owner may put them again.
  function end_lease(id, lost)
    local keys = {}
    for _, key in ipairs(call('SMEMBERS', LEASES .. ':' .. id)) do
      if call('ZSCORE', INDEX, key) then keys[#keys + 1] = key end
      if lost then
        call('HSET', OWNERS, key, '-' .. id)
        call('ZADD', LOST, NOW, key)
      else
        call('HDEL', OWNERS, key)
      end
    end
    call('DEL', LEASES .. ':' .. id)
    call('ZREM', LEASES, id)
    delete_all(keys)
  end

  -- Delete what has expired: keys whose time has passed, and those of leases that were not renewed.
  function reap()
    local due = call('ZRANGEBYSCORE', DEADLINES, '-inf', '(' .. whole(NOW), 'LIMIT', 0, 10000)
    local keys = {}
    for _, key in ipairs(due) do
      local left = call('PTTL', key)
      if left == -2 then
        unbind(key)
        keys[#keys + 1] = key
      elseif left == -1 then call('ZREM', DEADLINES, key) -- another program made the key stay
      else call('ZADD', DEADLINES, NOW + left + 1, key) end
    end
    delete_all(keys)
    local over = call('ZRANGEBYSCORE', LEASES, '-inf', '(' .. whole(NOW), 'LIMIT', 0, 100)
    for _, id in ipairs(over) do end_lease(id, true) end
    if #over > 0 then
      for _, key in ipairs(call('ZRANGEBYSCORE', LOST, '-inf', NOW - 3600000, 'LIMIT', 0, 10000)) do
        call('ZREM', LOST, key)
        local owner = call('HGET', OWNERS, key)
        if owner and string.sub(owner, 1, 1) == '-' then call('HDEL', OWNERS, key) end
      end
    end
  end
end

-- Write a key and what the store knows of it. A deadline of 0: none. A lease of '': none.
local function write(key, value, revision, deadline, lease)
  if deadline > 0 then
    call('SET', key, value, 'PXAT', whole(deadline))
    if lease == '' then call('ZADD', DEADLINES, whole(deadline), key) end
  else
    call('SET', key, value)
  end
  if not PLAIN and (deadline == 0 or lease ~= '') then call('ZREM', DEADLINES, key) end
  if lease ~= '' then
    call('HSET', OWNERS, key, lease)
    call('SADD', LEASES .. ':' .. lease, key)
  end
  if call('HSET', REVISIONS, key, whole(revision)) == 1 then call('ZADD', INDEX, 0, key) end
end
