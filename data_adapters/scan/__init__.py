"""scan: the walk over a whole archive, in several processes, remembered between runs, with constant memory.

engine.py   the order of events            journal.py  what is remembered (SQLite), and the rows in sorted order
pool.py     processes that may die         result.py   manifest.parquet, rejected.csv, duplicates.csv, figures
worker.py   what is done with one file     codec.py    headers as JSON, names of groups sealed
"""

from data_adapters.scan.engine import scan_archive
from data_adapters.scan.result import Scan
from data_adapters.scan.worker import content_hash

__all__ = ["Scan", "content_hash", "scan_archive"]
