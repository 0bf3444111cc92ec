"""Sentinel-2 patches: TIFF with the bands B2, B3, B4, B8 and B11 as samples, surface reflectance times 10,000."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tifffile
from torch import Tensor

from data_adapters import BadFileError, BaseAdapter, Record
from data_adapters.augment.picture import middle_square
from data_adapters.base import Spec, ViewKind, to_tensor
from data_adapters.pipeline import A, Seeded

BANDS = ("B2", "B3", "B4", "B8", "B11")


class SatelliteAdapter(BaseAdapter):
    """Names begin with the Sentinel-2 tile (T32TNS_0417.tif), which is the group: neighbours stay on one side."""

    name = "satellite"
    suffixes = (".tif", ".tiff")
    prepares_any_size, most_views = True, 8  # `prepare` follows prepared_size, and land has no up

    @property
    def spec(self) -> Spec:
        return self.make_spec(channels=5, mean=(0.15,) * 5, std=(0.15,) * 5)

    def inspect(self, path: Path, root: Path) -> Iterable[Record]:
        with tifffile.TiffFile(path) as tiff:
            height, width, bands = (*tiff.pages[0].shape, 1)[:3]
        if bands != len(BANDS):
            raise BadFileError("not five bands", remedy=f"Stack {', '.join(BANDS)} as samples of one page.", path=path)
        yield Record(uri=str(path), group="", meta={"size": [width, height], "bands": list(BANDS)})

    def group_of_name(self, name: str) -> str:
        return name.split("_")[0]

    def read(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        counts = tifffile.imread(record.uri)
        if not counts.any(axis=(0, 1)).all():
            raise BadFileError("an empty band", remedy="Leave out patches at the edge of a tile.", path=record.uri)
        return (counts / np.float32(10_000)).clip(0, 1)

    def augment(self, kind: ViewKind, size: int) -> Seeded:
        return Seeded([A.RandomResizedCrop((size, size), (0.3, 1.0) if kind == "global" else (0.05, 0.3)), A.D4()])

    def prepare(self, record: Record) -> Tensor:
        return to_tensor(middle_square(self.read(record, np.random.default_rng(0)), self.options.prepared_size))[None]
