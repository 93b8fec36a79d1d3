-- End a lease and delete its key, whoever wrote it last. ARGV[5..]: lease, key or ''.
current()
end_lease(ARGV[5], false)
if ARGV[6] ~= '' and call('EXISTS', ARGV[6]) == 1 then
  unbind(ARGV[6])
  delete_all({ARGV[6]})
end
return last
