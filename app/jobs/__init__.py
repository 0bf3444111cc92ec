"""Kinds of jobs beside the training of probes: import of an upload, embedding of an archive, application of a probe."""
