-- One page of a listing. ARGV[5..]: low and high bound, most keys, most bytes, '1' for keys only.
-- Returns {epoch, current revision, its token, 1 if there is more, {key, value, revision}*} or {'', text, key}.
current()
if string.sub(ARGV[5], 1, 1) ~= '(' then
  reap()
end
local epoch, most, room = call('HGET', STATE, 'epoch'), tonumber(ARGV[7]), tonumber(ARGV[8])
local keys = call('ZRANGEBYLEX', INDEX, ARGV[5], ARGV[6], 'LIMIT', 0, most)
local page, more = {}, #keys == most and 1 or 0
for place, key in ipairs(keys) do
  local value = pcall(ARGV[9] == '1' and 'EXISTS' or 'GET', key)
  if type(value) == 'table' and value.err then return {'', value.err, key} end
  if value and value ~= 0 then
    page[#page + 1] = key
    page[#page + 1] = ARGV[9] == '1' and '' or value
    page[#page + 1] = call('HGET', REVISIONS, key) or '1'
    room = room - #page[#page - 1]
    if room < 0 and place < #keys then
      more = 1
      break
    end
  elseif place == #keys and more == 1 then -- the next page begins after this key
    page[#page + 1] = key
    page[#page + 1] = false
    page[#page + 1] = '0'
  end
end
return {epoch, last, previous, more, page}
