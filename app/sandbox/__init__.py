"""Foreign files are read in processes of their own, with little memory and no secrets; `pool` is the way in.

`process` is the service's end of them. `nursery` is a process without threads from which workers are forked, `worker`
what they do within `limits`. `screen` is what they check before a reader sees a file: `streams` by counting, `formats`
by what single formats can hide. `frames` is the only way in which both sides talk.
"""
