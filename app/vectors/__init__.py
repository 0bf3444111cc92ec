"""Similarity search over embedding tables: cosine neighbours, narrowed by metadata.

`lejepa_med.search` has the file of normalised vectors that answers exactly, and the conditions that narrow a search;
`pgvector` and `lance` are approximate indexes over the same rows for tables beyond what is scanned in milliseconds;
`indexes` chooses between them, builds them and measures their recall against the exact answer.
"""

from app.vectors.backend import Backend, Query, Report
from app.vectors.indexes import Found, Indexes, IndexState
from app.vectors.maps import Maps
from lejepa_med.search.base import NONE, Base, normalised
from lejepa_med.search.filters import Condition

__all__ = [
    "NONE",
    "Backend",
    "Base",
    "Condition",
    "Found",
    "IndexState",
    "Indexes",
    "Maps",
    "Query",
    "Report",
    "normalised",
]
