-- Renew a lease that holds one key. ARGV[5..]: lease, milliseconds, key, revision of its put. Returns 1, or 0 if it ended.
local lease, lifetime, key = ARGV[5], tonumber(ARGV[6]), ARGV[7]
current()
reap()
if not call('ZSCORE', LEASES, lease) or call('HGET', REVISIONS, key) ~= ARGV[8] or call('EXISTS', key) == 0 then
  return 0
end
call('ZADD', LEASES, NOW + lifetime, lease)
call('PEXPIREAT', key, whole(NOW + lifetime + 1000))
return 1
