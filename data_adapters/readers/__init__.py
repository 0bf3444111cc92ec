"""Processes that read foreign files. A file that crashes, hangs or swells its reader costs that file and nothing else."""
