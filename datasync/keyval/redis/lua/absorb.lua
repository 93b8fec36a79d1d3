-- Append what other programs changed: the keys whose values are not those of the log. ARGV[5..]: keys.
-- A key that holds no string counts as deleted. Returns the number of changes.
current()
if not tracked then call('HSET', STATE, 'tracked', '1') end -- from now on, commits keep the digests
reap()
local revision, operations = current() + 1, {}
for place = 5, #ARGV do
  local key = ARGV[place]
  local value = pcall('GET', key)
  if type(value) == 'string' then
    local digest = redis.sha1hex(value)
    if call('HGET', DIGESTS, key) ~= digest or not call('ZSCORE', INDEX, key) then
      unbind(key)
      call('ZREM', DEADLINES, key)
      call('ZADD', INDEX, 0, key)
      call('HSET', REVISIONS, key, whole(revision))
      call('HSET', DIGESTS, key, digest)
      operations[#operations + 1] = put_entry(key, value)
    end
  elseif call('ZSCORE', INDEX, key) then
    unbind(key)
    forget(key)
    call('HDEL', DIGESTS, key)
    operations[#operations + 1] = delete_entry(key)
  end
end
if #operations > 0 then append(TOKEN, operations) end
return #operations
