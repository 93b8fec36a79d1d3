-- One pair. ARGV[5]: the key. Returns {value, revision}, {} or {'', text, key}.
local value = pcall('GET', ARGV[5])
if type(value) == 'table' and value.err then return {'', value.err, ARGV[5]} end
if not value then return {} end
return {value, call('HGET', REVISIONS, ARGV[5]) or '1'}
