"""Similarity search over embedding tables: cosine neighbours, narrowed by metadata.

`base` is the file of normalised vectors that every table gets and that answers exactly; `conditions` narrows a search;
`pgvector` and `lance` are approximate indexes over the same rows for tables beyond what is scanned in milliseconds;
`indexes` chooses between them, builds them and measures their recall against the exact answer.
"""

from app.vectors.backend import NONE, Backend, BackendName, Query, Report
from app.vectors.base import Base, normalised
from app.vectors.conditions import Condition
from app.vectors.indexes import Found, Indexes, IndexState

__all__ = [
    "NONE",
    "Backend",
    "BackendName",
    "Base",
    "Condition",
    "Found",
    "IndexState",
    "Indexes",
    "Query",
    "Report",
    "normalised",
]
