-- Where the history is. ARGV[5]: a revision.
-- Returns {epoch, current revision, its token, first revision of the log, token at the revision, milliseconds until due}.
-- Only data that has a state is looked at, so that a stream finds out that there is none.
if not call('HGET', STATE, 'last') then return {'', 0, '', 0, '', -1} end
current()
reap()
local first = call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
local entry = call('XRANGE', LOG, ARGV[5] .. '-0', ARGV[5] .. '-0')[1]
return {
  call('HGET', STATE, 'epoch'), last, previous,
  first and tonumber(string.match(first[1], '^(%d+)')) or last + 1,
  entry and entry[2][2] or '', next_due(),
}
