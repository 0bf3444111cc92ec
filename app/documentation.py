"""lejepa-med docs: the documentation as a site, built from README, docs/ and the benchmark results, without network."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from data_adapters.errors import MissingExtraError, UserError, require

ROOT = Path(__file__).parents[1]
INSTALLED = Path(sys.prefix) / "share" / "lejepa-med"  # where the wheel puts what pyproject.toml lists as data files
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", *(f"docs/**/*.{kind}" for kind in ("md", "jpg", "png", "svg", "webp")))
RESULTS = "benchmarks/results/*.md"


def sources() -> Path:
    """Return the folder that holds README.md and docs/: the checkout, or what the wheel installed.

    Raises:
        UserError: neither is there.
    """
    for folder in (ROOT, INSTALLED):
        if (folder / "docs" / "zensical.toml").is_file():
            return folder
    raise UserError(
        f"Neither {ROOT} nor {INSTALLED} holds the pages of the documentation.",
        remedy="Reinstall the wheel, or run this in a checkout.",
    )


def build(out: Path) -> Path:
    """Build the site in `out` and return the folder to serve, OUT/site; what `out` held of an earlier build goes.

    Raises:
        MissingExtraError: the generator is not installed.
        UserError: it failed; its own message is part of the error.
    """
    for module in ("zensical", "mkdocstrings"):
        try:
            require(module, extra="docs")
        except MissingExtraError as error:
            raise MissingExtraError(
                f"This command needs the Python package '{module}'.", remedy=error.remedy
            ) from error
    root, pages = sources(), out / "pages"
    for folder in (pages, out / "site"):
        shutil.rmtree(folder, ignore_errors=True)
    for pattern in (*PAGES, RESULTS):
        for file in root.glob(pattern):
            target = pages / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copyfile(root / "README.md", pages / "index.md")
    _write_routes(pages / "docs" / "reference" / "rest.md")
    settings = (root / "docs" / "zensical.toml").read_text(encoding="utf-8")
    (out / "zensical.toml").write_text(settings.replace('"PACKAGES"', f'"{ROOT.as_posix()}"'), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).strip()
        raise UserError(f"The site could not be built:\n{said}", remedy="Correct the page that is named there.")
    return out / "site"


def _write_routes(page: Path) -> None:
    """Write the REST reference, from the OpenAPI document of the installed service."""
    from jinja2 import Environment

    from app.core.settings import Settings
    from app.main import create_app
    from app.routes.pages import described

    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(  # Markdown, so nothing is escaped
        (ROOT / "app" / "web" / "rest.md.j2").read_text(encoding="utf-8")
    )
    routes = described(create_app(Settings()).openapi(), "http://127.0.0.1:8000")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(template.render(routes=routes), encoding="utf-8")


def serve(folder: Path, *, port: int) -> None:
    """Serve a built site on loopback until Ctrl-C.

    Raises:
        UserError: the port is taken.
    """
    handler = functools.partial(Quiet, directory=str(folder))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UserError(f"Port {port} cannot be used: {error}.", remedy="Choose another one with --port.") from error
    with server:
        print(f"documentation at http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def show(out: Path | None, *, port: int) -> None:
    """Build into `out` and stop; without it, build into a temporary folder and serve."""
    if out is not None:
        print(f"wrote {build(out)}/index.html")
        return
    with tempfile.TemporaryDirectory(prefix="lejepa-docs-") as folder:
        serve(build(Path(folder)), port=port)
