"""scan: the walk over a whole archive, in several processes, remembered between runs, with constant memory.

engine.py   the order of events
reading.py  the two passes over the files: headers, then pixels and content
batches.py  files that one process reads, and what a file costs at which it dies or hangs (data_adapters/readers)
journal.py  what is remembered (SQLite), and the rows in sorted order
result.py   manifest.parquet, rejected.csv, duplicates.csv, figures
"""

from data_adapters.readers.records import content_hash
from data_adapters.scan.batches import FILE_SECONDS
from data_adapters.scan.engine import scan_archive
from data_adapters.scan.result import Scan

__all__ = ["FILE_SECONDS", "Scan", "content_hash", "scan_archive"]
