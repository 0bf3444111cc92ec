"""The table of formats_rows.py, parsed for the tests and printed as docs/formats.md.

`python -m tests.data_adapters.formats_table` writes docs/formats.md anew.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data_adapters import formats_rows

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"
SECTIONS = (  # folder, adapter, list, heading
    ("mri", "mri", formats_rows.MRI, "mri"),
    ("galaxy", "galaxy", formats_rows.GALAXY, "galaxy"),
    ("galaxy_cutouts", "galaxy", formats_rows.CUTOUTS, "galaxy: cut-outs of surveys"),
    ("histo", "histology", formats_rows.TILES, "histology: tiles and one slide"),
    ("slides", "histology", formats_rows.SLIDES, "histology: small slides"),
    ("histo", "images", formats_rows.IMAGES, "images"),
)
ORIGINS = {
    "astropy": "astropy",
    "GDS": "a GOODS-South cut-out",
    "highdicom": "highdicom",
    "ivadomed": "ivadomed",
    "libvips": "libvips",
    "mzlsbass": "legacypipe",
    "nibabel": "nibabel",
    "openslide": "openslide",
    "pillow": "Pillow",
    "pydicom": "pydicom",
    "testcase": "legacypipe",
}
HEAD = """# What real files give

Awkward files of the public test suites of other projects, and what the adapters make of each: read, with the values
that another reader gives, or refused, with the reason that `rejected.csv` and the service tell. The files themselves
are not part of this repository. `tests/data_adapters/test_formats_table.py` checks every line where they are
(`LEJEPA_REAL_DATA`), pixel by pixel after the documented mapping: volumes against nibabel, DICOM slices against GDCM,
FITS against astropy, slides against openslide, pictures against tifffile, OpenCV and imagecodecs. "mean" is the mean
of the other reader's values, with the header's scaling. Options of the modality, where a line needs some, are behind
the name.

The beginning of a name is its origin: {origins}.
"""


@dataclass(frozen=True)
class Row:
    """One line: a file, the options it is read with, what it is, and "read: ..." or "refused: ..."."""

    folder: str
    adapter: str
    file: str
    options: dict[str, Any]
    what: str
    verdict: str


def rows() -> Iterator[Row]:
    """Every line of every list."""
    for folder, adapter, text, _ in SECTIONS:
        for line in text.strip().splitlines():
            head, what, verdict = line.split(" | ")
            file, _, options = head.partition(" {")
            yield Row(folder, adapter, file, json.loads("{" + options) if options else {}, what, verdict)


def document() -> str:
    """The text of docs/formats.md."""
    origins = ", ".join(f"`{prefix}` {name}" for prefix, name in ORIGINS.items())
    parts = [HEAD.format(origins=origins)]
    for folder, adapter, _, heading in SECTIONS:
        parts.append(f"## {heading}\n\n| file | what it is | verdict |\n|---|---|---|")
        for row in rows():
            if (row.folder, row.adapter) == (folder, adapter):
                options = f" with `{json.dumps(row.options)}`" if row.options else ""
                parts.append(f"| {row.file}{options} | {row.what} | {row.verdict} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
