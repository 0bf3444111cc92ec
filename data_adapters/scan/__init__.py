"""scan: the walk over a whole archive, in several processes, remembered between runs, with constant memory.

engine.py     the order of events              journal.py  what is remembered (SQLite), and the rows in sorted order
looks.py      headers, by file, in order       result.py   manifest.parquet, rejected.csv, duplicates.csv, figures
checks.py     pixels and content, by record    origin.py   by what the adapter and the machine are known
pool.py       who does the work                codec.py    headers as JSON, names of groups sealed
processes.py  workers that may die or hang     meter.py    progress
worker.py     what is done with one file
"""

from data_adapters.scan.engine import scan_archive
from data_adapters.scan.processes import FILE_SECONDS, Started
from data_adapters.scan.result import Scan
from data_adapters.scan.worker import content_hash

__all__ = ["FILE_SECONDS", "Scan", "Started", "content_hash", "scan_archive"]
