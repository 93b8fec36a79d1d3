-- Trim the log up to a revision. ARGV[5]: the revision, or '' for the current one. Returns the first one that is left.
current()
local upto = ARGV[5] == '' and last or math.min(tonumber(ARGV[5]), last)
call('XTRIM', LOG, 'MINID', whole(upto) .. '-0')
return upto
