"""Processes that read foreign files: a file that crashes or hangs its reader, or fills the memory, costs itself only.

process.py      start a process, ask it, end it; the pool that replaces one that was lost
fork_server.py  a prepared process from which a service forks readers in milliseconds
worker.py       what a process can be asked, and its loop
records.py      the work on one file for a scan: headers as JSON, pixels checked, content hashed
limits.py       memory, handles and files that a process may use
screen.py       refuses files that would unpack, or count, to far more than they are
frames.py       the messages between both sides
"""
