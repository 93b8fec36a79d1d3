-- End a lease and delete its keys. ARGV[5]: lease.
end_lease(ARGV[5], false)
return call('HGET', STATE, 'last')
