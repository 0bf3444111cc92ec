"""The model card of an encoder folder: what it was trained on and how, what it is good for, and what was measured."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Template

from lejepa_med.models.architectures import inner_layers_of
from lejepa_med.models.formation import formation_of, seen_in

CURVE_ROWS = 6  # records of training that the card shows, evenly spaced
CURVE = {  # key of metrics.jsonl: heading
    "epoch": "epoch",
    "loss": "loss",
    "invariance": "invariance",
    "sigreg_per_sample": "SIGReg / N",
    "backbone/effective_rank": "effective rank (backbone)",
    "projector/effective_rank": "effective rank (projector)",
}


def model_card(name: str, info: Mapping[str, Any], *, fingerprint: str) -> str:
    """README.md of the encoder `name` with this lejepa_med.json; results of another fingerprint are left out."""
    source = files("lejepa_med.models").joinpath("templates/model_card.md.j2").read_text(encoding="utf-8")
    blank: dict[str, Any] = {"objective": {}, "training": {}, "data": {}}
    formation = formation_of(dict(info))
    seen = seen_in(formation, dims=info["spec"].get("dims", 2))
    tokens = formation.layers > 1 and inner_layers_of(info["backbone"]) == "tokens"
    results = {k: v for k, v in info.get("results", {}).items() if v["fingerprint"] == fingerprint}
    facts = {"formation": formation, "seen": seen, "tokens": tokens, "results": results, "fingerprint": fingerprint}
    card: str = Template(source).render(name=name, info={**blank, **info}, cell=_cell, **facts)
    return card + "\n"


def curve_rows(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns and rows of evenly spaced records of metrics.jsonl, columns without any value left out."""
    if not history:
        return {}
    last, most = len(history) - 1, min(CURVE_ROWS, len(history))
    places = [round(k * last / max(1, most - 1)) for k in range(most)]
    kept = [key for key in CURVE if any(history[place].get(key) is not None for place in places)]
    rows = [[history[place].get(key) for key in kept] for place in places]
    return {"columns": [CURVE[key] for key in kept], "rows": rows}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")
