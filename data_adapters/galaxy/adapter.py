"""Archives of galaxies: FITS cut-outs, Galaxy10-style HDF5, or JPEG/PNG with a catalogue."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data_adapters.augment import sky
from data_adapters.augment.operations import Crop, Operation, Scene
from data_adapters.augment.picture import middle_square
from data_adapters.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BaseAdapter,
    Record,
    Rejected,
    Spec,
    ViewKind,
    rejected,
    to_tensor,
)
from data_adapters.errors import BadFileError, UserError
from data_adapters.formats import FormatTable
from data_adapters.galaxy.cutout import clean_flux, middle
from data_adapters.galaxy.formats import FORMATS, CutoutFormat
from data_adapters.galaxy.learn import UNIFORM, learn
from data_adapters.galaxy.metadata import CutoutFile, named_bands, parse_angle, position_in, settle, sky_cell
from data_adapters.galaxy.options import MAX_ASPECT, MIN_SIDE, PICTURE_BANDS, GalaxyOptions, split_bands
from data_adapters.galaxy.recipe import (
    FluxCrop,
    SkyCrop,
    flux_operations,
    picture_operations,
)
from data_adapters.groups import Places, stem
from data_adapters.record import BY_SKY

KINDS = {"flux": "flux (FITS or HDF5)", "picture": "pictures (JPEG, PNG or RGB)"}


class GalaxyAdapter(BaseAdapter):
    """Galaxies as flux or as pictures, one source in the middle of each cut-out.

    A record's group is the catalogue's, else the sky cell of its position (catalogue, HDF5 columns, WCS or the file's
    name; HEALPix nside 64), else that of its folder. `fit` settles kind, bands, scales and pixel scale; until then flux
    can be read but not turned into views.
    """

    name: ClassVar[str] = "galaxy"
    formats: ClassVar[FormatTable[CutoutFormat]] = FORMATS
    suffixes: ClassVar[tuple[str, ...]] = formats.suffixes
    Options: ClassVar[type[GalaxyOptions]] = GalaxyOptions
    uniform: ClassVar[Mapping[str, str]] = UNIFORM
    # 2: the field; the stretch computes asinh by the logarithm. 3: BLANK of unsigned integers, fill values of HDF5
    version: ClassVar[int] = 3
    prepares_any_size: ClassVar[bool] = True
    most_views = 8  # the sky has no up, and a mirrored galaxy is as likely
    usual_views, usual_layers = 8, 2  # benchmarks/results/warm-start-trials.md

    # --- what the encoder receives ----------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """Flux or picture: as set or learnt, else as the bands and scales suggest, else picture."""
        o = self.options
        if o.kind != "auto":
            return str(o.kind)
        known_as_picture = self.bands in (None, *PICTURE_BANDS.values()) and o.scales is None
        return "picture" if known_as_picture else "flux"

    @property
    def bands(self) -> tuple[str, ...] | None:
        """The bands in channel order; None until they are set or learnt."""
        return split_bands(self.options.bands)

    @property
    def field(self) -> float:
        """The part of a cut-out's sides that is shown; all of it until it is set or learnt."""
        return float(self.options.field or 1.0)

    @property
    def spec(self) -> Spec:
        """One channel a band. RGB pictures are centred by ImageNet's statistics, everything else at .5."""
        channels = len(self.bands) if self.bands else 3
        if self.kind == "picture" and channels == 3:
            return self.make_spec(channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        return self.make_spec(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)

    def fit(self, records: Sequence[Record]) -> "GalaxyAdapter":
        """The adapter with kind, bands, scales and pixel scale learnt from `records`; see `learn`.

        Raises:
            UserError: the archive mixes kinds or bands.
        """
        fitted = copy.copy(self)  # through __getstate__, so without pipelines and open files
        fitted.options = self.options.model_copy(update=learn(self.options, records, self.pixels))
        return fitted

    # --- records ----------------------------------------------------------------------------------------------------

    def combine(self, found: Iterator[Record | Rejected]) -> Iterator[Record | Rejected]:
        """The records with their bands, whose names the catalogue may have added."""
        for one in found:
            if isinstance(one, Rejected):
                yield one
                continue
            try:
                yield settle(one, self.bands)
            except BadFileError as error:
                yield rejected(one.uri, error)

    def grouped(self, record: Record, root: Path, places: Places) -> Record:
        """The record in its sky cell where its position is known, else by its place."""
        return places.settle(self._in_sky(record))

    def _in_sky(self, record: Record) -> Record:
        if record.group:
            return record
        if "ra" in record.meta and "dec" in record.meta:
            ra, dec = parse_angle(record.meta["ra"], hours=True), parse_angle(record.meta["dec"], hours=False)
            cell = sky_cell(float("nan") if ra is None else ra, float("nan") if dec is None else dec)
            return dataclasses.replace(record, group=cell, grouped_by=BY_SKY)
        if record.item:  # rows of a file have no names
            return record
        place = position_in(stem(Path(record.uri).name, self.suffixes))
        if place is None:
            return record
        return dataclasses.replace(record, group=sky_cell(*place), grouped_by="sky position in the file's name")

    def inspect(self, path: Path, root: Path) -> Iterable[Record]:
        """Headers of one file -> its records, with an empty group and perhaps no bands, which `scan` fills in."""
        form = self.formats.of(path)
        if form.kind is not None:
            self._check_kind(form.kind)
        file = form.inspect(path, self.bands)
        self._check_kind(file.kind)
        meta = self._meta(file)
        return [
            Record(uri=str(path), item=one.item, group="", label=one.label, meta={**meta, **one.facts})
            for one in file.images
        ]

    def _check_kind(self, kind: str) -> None:
        if self.options.kind not in ("auto", kind):
            raise BadFileError(
                f"holds {KINDS[kind]}, but the encoder, or the option kind, is for {KINDS[self.options.kind]}",
                remedy=f"Use an encoder that was pretrained on {KINDS[kind]}, or pretrain one on such files (without "
                "the option kind): pictures and flux need an encoder each.",
            )

    def _meta(self, file: CutoutFile) -> dict[str, Any]:
        width, height = file.width, file.height
        if min(width, height) < MIN_SIDE:
            raise BadFileError(f"a side of less than {MIN_SIDE} pixels", remedy="Cut out with more sky around.")
        if max(width, height) > self.options.max_side:
            raise BadFileError(
                f"a side of more than {self.options.max_side} pixels",
                remedy="Cut out the sources (astropy.nddata.Cutout2D), or raise the option max_side.",
            )
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise BadFileError(
                "a strip, more than four times as long as wide", remedy="Cut out the sources (astropy.nddata.Cutout2D)."
            )
        meta = {"kind": file.kind, "planes": file.count, "size": [width, height], "bits": file.bits}
        return meta if file.planes is None else {**meta, "file_bands": ",".join(file.planes)}

    # --- pixels -----------------------------------------------------------------------------------------------------

    def pixels(self, record: Record) -> np.ndarray:
        """The whole cut-out: (H, W, bands) float32 flux after `clean_flux`, or (H, W, C) uint8.

        Raises:
            BadFileError: damaged, blank or dead, or of other kind or bands than the archive.
        """
        path = Path(record.uri)
        form = self.formats.of(path)
        if form.kind is not None:
            self._check_kind(form.kind)
        pixels = form.read(path, record.item, self.bands, named_bands(record))
        if pixels.dtype == np.uint8:
            self._check_kind("picture")
            return pixels
        self._check_kind("flux")
        return clean_flux(pixels, background=self.options.background)

    def read(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """The whole cut-out, see `pixels`; nothing in it is random."""
        return self.pixels(record)

    def verify(self, record: Record) -> None:
        """Read the pixels; the stretch, which needs `fit`, cannot fail on them."""
        self.pixels(record)

    def crop(self, kind: ViewKind, size: int) -> Crop:
        """Turned, mirrored and shifted, with the source in view.

        Raises:
            UserError: flux before `fit`.
        """
        o = self.options
        geometry = {"size": size, "area": o.global_area if kind == "global" else o.local_area, "field": self.field}
        if self.kind == "picture":
            return SkyCrop(**geometry)
        bands, scales = self._fitted()
        pixel_scale = o.pixel_scale or sky.SEEING_SCALE
        return FluxCrop(**geometry, bands=bands, scales=scales, pixel_scale=pixel_scale, q=o.stretch_q, m=o.stretch_m)

    def operations(self) -> list[Operation]:
        """Those of flux or of pictures."""
        if self.kind == "picture":
            return picture_operations(resolution=self.options.global_size / 224)
        return flux_operations()

    def shown_operations(self) -> list[Operation]:
        """Those of the option `kind`.

        Raises:
            UserError: it is not said.
        """
        if self.options.kind == "auto":
            raise UserError(
                "Flux and pictures of galaxies have recipes of their own.",
                remedy="Add -o kind=flux (FITS, float HDF5) or -o kind=picture.",
            )
        return self.operations()

    def view_example(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Scene] | None:
        """A picture, or faint flux once bands and scales are known; None while the kind of the archive is not."""
        if self.kind == "picture":
            settled = self.options.kind != "auto" or self.bands is not None
            channels = self.spec.channels
            return (rng.integers(0, 256, (size, size, channels)).astype(np.uint8), None) if settled else None
        if self.bands is None or self.options.scales is None:
            return None
        crop = self.crop("global", size)
        flux = (rng.standard_normal((size, size, len(self.bands))) / self.options.scales).astype(np.float32)
        return flux, crop.scene(flux, 1.0) if isinstance(crop, FluxCrop) else None

    def prepare(self, record: Record) -> Tensor:
        """The field, (1, C, size, size); of an oblong cut-out its middle square, where the source is.

        Raises:
            BadFileError: see `pixels`.
            UserError: flux before `fit`.
        """
        image = middle_square(middle(self.pixels(record), self.field), self.options.prepared_size)
        if image.dtype == np.uint8:
            return to_tensor(image)[None]
        _, scales = self._fitted()
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(sky.asinh_stretch(planes, scales, q=self.options.stretch_q, m=self.options.stretch_m))[
            None
        ]

    def _fitted(self) -> tuple[tuple[str, ...], tuple[float, ...]]:
        bands, scales = self.bands, self.options.scales
        if bands is None or scales is None or len(bands) != len(scales):
            raise UserError(
                "The galaxy adapter does not know the archive's bands and scales yet.",
                remedy="Call adapter.fit(records), or set the options bands and scales.",
            )
        return bands, scales
