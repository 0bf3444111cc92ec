"""Long work: accepted by a request, done in steps by a worker thread of any process, kept through kill -9.

A job's row is the one truth about it (`app.store.jobs`): it waits there, a worker claims it there, and it gets its
outcome there, in one transaction with the rows of what it made. The files of the job tell which of its steps are done.

- `worker` claims jobs and runs their steps; `retry` repeats a step whose fault passes.
- `processes` sends this process's heartbeat, and queues the jobs of processes that ended again.
- `cleanup` removes files that nobody needs any more.
- `base` has what all kinds of jobs share; `import_upload`, `embed_archive`, `train_probe` and `apply_probe` are the
  kinds. `labels` makes the plan of a `train_probe` job, `scan` reads the headers for the first two.
- `waiting` serves requests that wait for the end of a job.
"""
