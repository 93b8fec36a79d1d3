-- Put a key that a lease holds, unless it is there. ARGV[5..]: lease, milliseconds, key, value.
-- Returns the revision of the put, 0 if the key is there, -1 if the lease has ended.
local lease, lifetime, key, value = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8]
current()
reap()
local revision = current() + 1
if not call('ZSCORE', LEASES, lease) then return -1 end
if call('EXISTS', key) == 1 then return 0 end
unbind(key)
write(key, value, revision, NOW + lifetime + 1000, lease)
if tracked then call('HSET', DIGESTS, key, redis.sha1hex(value)) end
return append(TOKEN, {put_entry(key, value)})
