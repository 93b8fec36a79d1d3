-- A transaction: conditions, net effect, data, index and log entry, all or nothing.
-- ARGV[5..]: lease and its milliseconds, number of conditions, number of arguments of the operations if they hold,
--            {key '0' '' | key '1' value | key '2' revision}*,
--            {'P' key value milliseconds | 'L' key value | 'D' key | 'X' prefix}*, and the same if they do not hold
-- Returns {status, revision, deleted keys, 1 if the lease was missing} or {'problem', text, key}.
local lease, lifetime = ARGV[5], tonumber(ARGV[6])
if not PLAIN and call('ZSCORE', REFUSED, TOKEN) then return {'refused', 0, 0, 0} end
current()
reap()

-- The bounds of the keys that start with a prefix.
local function span(prefix)
  if prefix == '' then return '-', '+' end
  local stem = #prefix
  while stem > 0 and string.byte(prefix, stem) == 255 do stem = stem - 1 end
  if stem == 0 then return '[' .. prefix, '+' end
  return '[' .. prefix, '(' .. string.sub(prefix, 1, stem - 1) .. string.char(string.byte(prefix, stem) + 1)
end

local function problem(found, key)
  if type(found) == 'table' and found.err then return {'problem', found.err, key} end
end

local place, status = 9, 'ok'
for _ = 1, tonumber(ARGV[7]) do
  local key, kind, expected = ARGV[place], ARGV[place + 1], ARGV[place + 2]
  local value = pcall('GET', key)
  local bad = problem(value, key)
  if bad then return bad end
  if kind == '2' then
    if not value or (call('HGET', REVISIONS, key) or '1') ~= expected then status = 'no' end
  elseif value ~= (kind == '1' and expected) then
    status = 'no'
  end
  place = place + 3
end
local stop = place + tonumber(ARGV[8]) - 1
if status == 'no' then place, stop = stop + 1, #ARGV end

-- The net effect, in the order of the last word on each key.
local effect, order, count, bound = {}, {}, 0, false
local function say(key, what)
  count = count + 1
  effect[key], order[key] = what, count
end
while place <= stop do
  local op, key = ARGV[place], ARGV[place + 1]
  if op == 'P' then
    local milliseconds = tonumber(ARGV[place + 3])
    say(key, {ARGV[place + 2], milliseconds > 0 and NOW + milliseconds or 0, ''})
    place = place + 4
  elseif op == 'L' then
    say(key, {ARGV[place + 2], NOW + lifetime + 1000, lease})
    bound = true
    place = place + 3
  elseif op == 'D' then
    local found = pcall('EXISTS', key)
    local bad = problem(found, key)
    if bad then return bad end
    if found == 0 then effect[key], order[key] = nil, nil
    elseif call('ZSCORE', INDEX, key) then say(key, false)
    else say(key, 'unknown') end -- another program wrote it, and the log does not have it
    place = place + 2
  else
    local gone, low, high = {}, span(key)
    for known in pairs(order) do if string.sub(known, 1, #key) == key then gone[#gone + 1] = known end end
    for _, known in ipairs(gone) do effect[known], order[known] = nil, nil end
    for _, known in ipairs(call('ZRANGEBYLEX', INDEX, low, high)) do
      -- They are not among the declared keys, for which the server checked the rights before.
      if redis.acl_check_cmd and not redis.acl_check_cmd('DEL', known) then
        return {'problem', 'NOPERM this user may not delete it', known}
      end
      say(known, false)
    end
    place = place + 2
  end
end

-- Whatever can fail has to fail before the first write.
local keys = {}
for key in pairs(order) do
  local kind = pcall('TYPE', key)
  local bad = problem(kind, key)
  if bad then return bad end
  if kind.ok ~= 'string' and kind.ok ~= 'none' then return {'problem', 'WRONGTYPE ' .. kind.ok, key} end
  keys[#keys + 1] = key
end
if #keys == 0 then return {status, current(), 0, 0} end
if #keys > 1 then table.sort(keys, function(a, b) return order[a] < order[b] end) end

local missing = 0
local revision, operations, deleted = current() + 1, {}, 0
for _, key in ipairs(keys) do
  local put = effect[key]
  if not PLAIN then unbind(key) end
  if put == 'unknown' then
    call('DEL', key)
    deleted = deleted + 1
  elseif put then
    write(key, put[1], revision, put[2], put[3])
    if tracked then call('HSET', DIGESTS, key, redis.sha1hex(put[1])) end
    operations[#operations + 1] = put_entry(key, put[1])
  else
    call('DEL', key)
    forget(key)
    if tracked then call('HDEL', DIGESTS, key) end
    operations[#operations + 1] = delete_entry(key)
    deleted = deleted + 1
  end
end
if bound and not call('ZSCORE', LEASES, lease) then
  call('ZADD', LEASES, NOW + lifetime, lease)
  missing = 1
end
if #operations == 0 then return {status, current(), deleted, 0} end
return {status, append(TOKEN, operations), deleted, missing}
