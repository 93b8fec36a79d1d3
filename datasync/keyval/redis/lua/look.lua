-- Where the history is. ARGV[5]: a revision.
-- Returns {epoch, current revision, its token, first revision of the log, token at the revision, milliseconds until due}.

-- Milliseconds until something expires, or -1.
local function next_due()
  local due = -1
  for _, set in ipairs({DEADLINES, LEASES}) do
    local first = call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
    local left = first and math.max(0, tonumber(first) - NOW + 1)
    if left and (due < 0 or left < due) then due = left end
  end
  return due
end

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
