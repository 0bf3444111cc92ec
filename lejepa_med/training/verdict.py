"""One plain sentence on how a run goes, from its records alone. Every threshold is our own choice, stated here.

collapsing   in each of the last 5 records one and the same sign: SIGReg / N above .3 and not falling by 3 % (all
             embeddings in one point give .409, N(0, I/9) gives .27); or the projector's effective rank below a tenth
             of what batch and dimension allow, or below 1.5; or the backbone's below 1.5; or a spread of the
             projector's output of less than 2 % of its length, that is, all embeddings nearly the same vector. Batches
             of fewer than 8 samples cannot tell, and a rank is low only as `evaluation.enough` says.
diverging    the smoothed loss stands more than 25 % (and 6 standard errors) above its best value, or is no number.
plateau      no new best of the smoothed loss, by more than 1 % (and 2 standard errors), for a fifth of the records, at
             least 10 of them, and a whole epoch (or 200 records, where epochs are long); it began where the loss first
             came within that distance of its best.
improving    otherwise.
too few      fewer than 10 records.

The loss is smoothed by a running median over a twentieth of the records (at least 3). Its noise is estimated from the
differences of neighbouring records (median absolute deviation), so the rules hold for noisy and for smooth curves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from data_adapters.tables import count
from lejepa_med.evaluation.enough import FEW, below, most_directions, too_few

State = Literal["early", "improving", "plateau", "collapsing", "diverging"]
RECENT = 5
ENOUGH = 10
COLLAPSED_SIGREG = 0.3
SMALLEST_BATCH = 8
RECOVERY = 0.97
SMALLEST_RANK = 1.5
SMALLEST_RANK_SHARE = 0.1
SMALLEST_SPREAD = 0.02
RISE, RISE_ERRORS = 0.25, 6.0
TOLERANCE, TOLERANCE_ERRORS = 0.01, 2.0
PLATEAU_SHARE, PLATEAU_RECORDS, MANY_RECORDS = 0.2, 10, 200
ADVICE: dict[State, str] = {
    "collapsing": "Raise --objective.lamb or the batch size, and look at the views with lejepa-med inspect.",
    "diverging": "Start again with a smaller --optim.lr or a longer --optim.warmup.",
}
WORSE = 0.02  # fall of an accuracy, and two standard errors of it, that is worth a word

KEYS = (
    "step", "epoch", "loss", "sigreg_per_sample", "projector/effective_rank", "projector/dim", "projector/rows",
    "projector/std", "projector/norm", "backbone/effective_rank", "backbone/dim", "backbone/rows",
)  # fmt: skip
"""What `judge` reads of a record of metrics.jsonl."""


@dataclass(frozen=True)
class Verdict:
    """The state, a sentence that names it first, and further sentences."""

    state: State
    text: str
    notes: tuple[str, ...] = ()

    @property
    def alarming(self) -> bool:
        """Whether somebody should look at the run now."""
        return self.state in ADVICE

    @property
    def advice(self) -> str:
        """What to do about an alarming verdict; else empty."""
        return ADVICE.get(self.state, "")


def judge(history: Sequence[Mapping[str, Any]], online: Sequence[Mapping[str, Any]] = ()) -> Verdict:
    """The verdict on the records of metrics.jsonl, oldest first, and of online.jsonl; a pure function of them."""
    rows = [row for row in history if "loss" in row]
    notes = tuple(note for key in ("linear", "knn") for note in _fallen(online, key))
    seen = rows[-1].get("projector/rows") if rows else None
    if seen is not None and seen < SMALLEST_BATCH:
        notes += (f"a batch of {seen} is too small to show a collapse; {SMALLEST_BATCH} samples are needed",)
    if rows and not _finite(rows[-1]["loss"]):
        return Verdict("diverging", "diverging: the loss is no longer a number", notes)
    sign = _collapse(rows[-RECENT:])
    if sign:
        return Verdict("collapsing", f"collapsing: {sign}", notes)
    rows = [row for row in rows if _finite(row["loss"])]
    if len(rows) < ENOUGH:
        return Verdict("early", f"too few log records to tell ({len(rows)} of {ENOUGH})", notes)
    state, text = _trend(
        np.array([row["loss"] for row in rows], float), np.array([row.get("epoch", 0.0) for row in rows], float)
    )
    return Verdict(state, text, notes)


def online_text(values: Mapping[str, Any]) -> str:
    """The accuracies of an evaluation with their 95 % intervals, or called rough where the queries are too few."""
    scores = []
    for key, name in (("knn", "k-NN"), ("linear", "linear probe")):
        interval = values.get(f"{key}_interval")
        shown = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        scores.append(f"{name} {values[key]:.3f}{shown}")
    sure = all(values.get(f"{key}_interval") for key in ("knn", "linear"))
    asked = f"{count(values['queries'], 'image')} in {count(values['query_groups'], 'group')}"
    told = f"95 % intervals from {asked}" if sure else f"rough, from {asked}"
    if values["fewest"] < FEW:
        told += f"; of the rarest class, {too_few(values['fewest'], FEW, what='image')}"
    most = most_directions(values["records"], values["backbone/dim"])
    return (
        f"{', '.join(scores)} (balanced accuracy, chance {values['chance']:.3f}; {told}), "
        f"effective rank {values['backbone/effective_rank']:.1f} of at most {most}"
    )


def _collapse(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sign of collapse that all `rows` show, in words; empty where there is none."""
    if len(rows) < RECENT:
        return ""
    last = rows[-1]
    if all(_low_rank(row) for row in rows):
        return f"effective rank {last['projector/effective_rank']:.1f} of {last['projector/dim']}"
    if all(_low(row, "backbone", SMALLEST_RANK) for row in rows):
        return f"effective rank of the backbone {last['backbone/effective_rank']:.1f} of {last['backbone/dim']}"
    # a run that starts with narrow embeddings and recovers is not collapsing
    if all(_far(row) for row in rows) and last["sigreg_per_sample"] > RECOVERY * rows[0]["sigreg_per_sample"]:
        return f"SIGReg is {last['sigreg_per_sample']:.2f} of the batch (one point: .41), spread {_text(last)}"
    if all(_narrow(row) for row in rows):
        return f"all embeddings are nearly one vector, spread {_text(last)} at a length of {last['projector/norm']:.3g}"
    return ""


def _low_rank(row: Mapping[str, Any]) -> bool:
    if not _finite(row.get("projector/effective_rank")):
        return False
    most = most_directions(row["projector/rows"], row["projector/dim"])
    # two or three directions cannot tell a collapse from a small projector
    return most >= 4 and _low(row, "projector", max(SMALLEST_RANK, SMALLEST_RANK_SHARE * most))


def _low(row: Mapping[str, Any], part: str, limit: float) -> bool:
    rank = row.get(f"{part}/effective_rank")
    return _finite(rank) and below(rank, limit, records=row.get(f"{part}/rows", row.get("projector/rows", 0))) is True


def _far(row: Mapping[str, Any]) -> bool:
    value = row.get("sigreg_per_sample")
    # of a perfect batch it is 1.06 / N, which is no longer small for a handful of samples
    return _finite(value) and row.get("projector/rows", 0) >= SMALLEST_BATCH and value > COLLAPSED_SIGREG


def _narrow(row: Mapping[str, Any]) -> bool:
    std, norm = row.get("projector/std"), row.get("projector/norm")
    if not (_finite(std) and _finite(norm)) or row.get("projector/rows", 0) < SMALLEST_BATCH:
        return False
    return bool(std * math.sqrt(row["projector/dim"]) < SMALLEST_SPREAD * norm)


def _text(row: Mapping[str, Any]) -> str:
    std = row.get("projector/std")
    return f"{std:.3g}" if _finite(std) else "unknown"


def _trend(loss: NDArray[np.float64], epoch: NDArray[np.float64]) -> tuple[State, str]:
    width = max(3, len(loss) // 20)
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(loss, width), axis=1)
    steps = np.diff(loss)
    noise = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2)
    error = 1.25 * noise / math.sqrt(width)  # of a median
    best = int(smooth.argmin())
    lowest = float(smooth[best])
    if smooth[-1] > lowest + max(RISE * abs(lowest), RISE_ERRORS * error):
        when = epoch[best + width - 1]
        return "diverging", f"diverging: loss {smooth[-1]:.3g}, best {lowest:.3g} at epoch {when:.3g}"
    near = smooth <= lowest + max(TOLERANCE * abs(lowest), TOLERANCE_ERRORS * error)
    first = int(near.argmax()) + width - 1
    age = len(loss) - 1 - first
    long = epoch[-1] - epoch[first] >= 1 or age >= MANY_RECORDS
    if long and age >= max(PLATEAU_RECORDS, PLATEAU_SHARE * len(loss)):
        return "plateau", f"plateau since epoch {epoch[first]:.3g}"
    return "improving", "improving"


def _fallen(online: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """A sentence where an accuracy on the labels has fallen from its best, beyond what the queries can tell.

    That is two standard errors of the difference, as binomial shares of the groups that were queried; the best value
    is smoothed (Agresti-Coull), since an accuracy of 1 from few queries is no certainty.
    """
    rows = [row for row in online if _finite(row.get(key))]
    if len(rows) < 3:
        return []
    best, last = max(rows, key=lambda row: row[key]), rows[-1]
    if last.get("fewest", FEW) < FEW:
        return []
    tried = max(1, last.get("query_groups") or last.get("queries") or 1)
    share = (best[key] * tried + 2) / (tried + 4)
    error = math.sqrt(share * (1 - share) / (tried + 4))
    if best[key] - last[key] <= max(WORSE, 2 * math.sqrt(2) * error):
        return []
    name = {"knn": "k-NN", "linear": "linear probe"}[key]
    return [f"{name} accuracy was best at epoch {best['epoch']:.3g} ({best[key]:.3f}) and is now {last[key]:.3f}"]


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
