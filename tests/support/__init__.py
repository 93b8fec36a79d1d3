"""Helpers of several test packages.

- ``servers``: etcd servers and clusters; ``executables``: their programs on this machine
- ``proxy``, ``peer_network``: TCP proxies with faults, between a client and a server and between members of a cluster
- ``running``: Python programs as a user starts them; ``child_process``: programs that answer questions on stdin
- ``registries``, ``stores``: short forms for changes, events, streams and states
- ``timing``: limits of time that hold on a busy machine
- ``grpc_calls``: a check that gRPC calls are freed; ``plots``: the style of pictures
"""
