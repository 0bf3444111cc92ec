"""Which views the two-view losses compare when there are more than two."""


def view_pairs(n_views: int, n_global: int) -> list[tuple[int, int]]:
    """Unordered pairs (a, b), a < b, of which at least one is global; for two global views the one pair of the papers.

    Two local views are not compared: they may share no pixel (multi-crop, arXiv 2006.09882).
    """
    return [(a, b) for a in range(n_global) for b in range(a + 1, n_views)]


def teacher_pairs(n_views: int, n_global: int) -> list[tuple[int, int]]:
    """Ordered pairs (teacher view, student view): teachers are global, none teaches itself (DINO, Equation 3)."""
    return [(t, s) for t in range(n_global) for s in range(n_views) if s != t]
