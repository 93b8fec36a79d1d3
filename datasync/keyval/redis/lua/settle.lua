-- Say what became of the commit of a token, and let it never be applied if it was not. ARGV[5]: the token.
-- Returns {1 if it was applied, first revision of the log}.
local token, from = ARGV[5], '-'
while true do
  local entries = call('XRANGE', LOG, from, '+', 'COUNT', 500)
  for _, entry in ipairs(entries) do
    if entry[2][2] == token then return {1, 0} end
    from = '(' .. entry[1]
  end
  if #entries < 500 then break end
end
-- The request may still be on its way, or wait in a server that stands still.
call('ZADD', REFUSED, NOW, token)
call('ZREMRANGEBYSCORE', REFUSED, '-inf', NOW - 86400000)
local first = call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
return {0, first and tonumber(string.match(first[1], '^(%d+)')) or 1}
