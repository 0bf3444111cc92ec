"""Pages of studies."""

from typing import Any

from lejepa_med.page import render_page


def render(template: str, **values: Any) -> str:
    """A template of `study/templates` as HTML."""
    return render_page("lejepa_med.study", template, filters={"figure": figure}, **values)


def figure(value: Any) -> str:
    """A table cell: numbers short, nothing as a dash."""
    if value is None or value == "":
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
