"""The training loop and what belongs to it: schedule, checkpoint, monitor, report, and the distributed helpers."""
