-- Extend a lease, or grant it. ARGV[5..]: lease, milliseconds, epoch, revision and token of the owner's last position.
-- Returns {1 if it was alive, 1 if the data went back behind that position, epoch, revision, token}.
local lease, lifetime = ARGV[5], tonumber(ARGV[6])
current()
reap()
local alive = call('ZSCORE', LEASES, lease) and 1 or 0
call('ZADD', LEASES, NOW + lifetime, lease)
if alive == 1 then
  for _, key in ipairs(call('SMEMBERS', LEASES .. ':' .. lease)) do
    call('PEXPIREAT', key, whole(NOW + lifetime + 1000))
  end
end
local epoch, back = call('HGET', STATE, 'epoch'), 0
if ARGV[8] ~= '0' then
  local entry = call('XRANGE', LOG, ARGV[8] .. '-0', ARGV[8] .. '-0')[1]
  if (ARGV[7] ~= '' and epoch ~= ARGV[7]) or last < tonumber(ARGV[8]) or (entry and entry[2][2] ~= ARGV[9]) then
    back = 1
  end
end
return {alive, back, epoch, last, previous}
