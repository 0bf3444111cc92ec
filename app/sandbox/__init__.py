"""Foreign files are read in processes of their own, with little memory and no secrets; see `pool` for the way in.

`pool` is the service's side. `nursery` is a process without threads from which workers are forked, `worker` is what
they do, `screen` what they check before a reader sees a file, and `frames` the only way in which both sides talk.
"""
