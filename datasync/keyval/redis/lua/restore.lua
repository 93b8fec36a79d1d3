-- Put keys of a lost lease again. ARGV[5..]: lease, milliseconds, '1' if the data went back, {key value}*
-- A key is put if it was lost with the lease and nobody changed it since; if the data went back, if it is not there.
local lease, lifetime, back = ARGV[5], tonumber(ARGV[6]), ARGV[7] == '1'
local revision, operations = current() + 1, {}
call('ZADD', LEASES, NOW + lifetime, lease)
for place = 8, #ARGV, 2 do
  local key, value = ARGV[place], ARGV[place + 1]
  local lost = call('HGET', OWNERS, key) == '-' .. lease
  if (lost or back) and call('EXISTS', key) == 0 then
    unbind(key)
    write(key, value, revision, NOW + lifetime + 1000, lease)
    if tracked then call('HSET', DIGESTS, key, redis.sha1hex(value)) end
    operations[#operations + 1] = put_entry(key, value)
  end
end
if #operations > 0 then append(TOKEN, operations) end
return #operations
