"""HTML pages from templates: text escaped, nothing loaded from anywhere, version and time at the foot."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from lejepa_med import __version__


def render_page(package: str, template: str, *, filters: Mapping[str, Callable[..., Any]] = {}, **values: Any) -> str:
    """A template as HTML.

    Args:
        package: whose folder `templates` holds it; a template may extend those of lejepa_med itself.
        template: file name.
        filters: for the template, besides `figure`.
        values: names that the template uses, besides `version` and `written`; one that is missing is an error.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("lejepa_med", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, **filters}
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(version=__version__, written=written, **values)


def figure(value: Any) -> str:
    """A table cell: numbers short, nothing as a dash."""
    if value is None or value == "":
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
