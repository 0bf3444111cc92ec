"""How many records a verdict needs: the one rule for reports, the training log, `select` and `stability`.

n vectors span at most n - 1 directions around their mean, so a low effective rank of few vectors says nothing of the
encoder. A rank r counts as low only where the vectors could have shown ten times as much, n - 1 >= 10 r. The factor is
our own: in draws from power-law spectra (dimensions 192 to 2048, 20 draws each) whose true rank is twice a limit, ten
times the limit of vectors measured a rank above the limit in 95 % of the draws, six times of them did not.
"""

import math

from data_adapters.tables import count

ROOM = 10.0
FEW = 10  # labels of a class below which an accuracy is mostly luck of the draw


def most_directions(records: int, dim: int) -> int:
    """The largest effective rank that so many vectors of `dim` numbers can have."""
    return max(0, min(records - 1, dim))


def records_for(limit: float) -> int:
    """How many vectors always tell whether their effective rank is below `limit`."""
    return math.ceil(ROOM * limit) + 1


def below(rank: float, limit: float, *, records: int) -> bool | None:
    """Whether the rank of so many vectors shows that the encoder's is below `limit`; None: they are too few to tell."""
    if rank >= limit:
        return False  # more vectors only show more
    return True if records - 1 >= ROOM * rank else None


def too_few(number: int, needed: int, *, what: str = "record", tell: str = "") -> str:
    """'42 records are too few to tell ...; 104 are needed'."""
    return f"{count(number, what, 'is')} too few to tell{' ' * bool(tell)}{tell}; {needed:,} are needed"
