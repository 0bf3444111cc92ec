"""Archives of galaxies: FITS cut-outs, Galaxy10-style HDF5, or JPEG/PNG with a catalogue."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data_adapters import raster
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
from data_adapters.catalog import Catalog
from data_adapters.errors import BadFileError, UserError
from data_adapters.galaxy import fits, hdf5
from data_adapters.galaxy.bands import COMPANION_FILE, choose, named_bands, settle
from data_adapters.galaxy.field import middle
from data_adapters.galaxy.flux import clean_flux
from data_adapters.galaxy.learn import UNIFORM, learn
from data_adapters.galaxy.options import MAX_ASPECT, MIN_SIDE, PICTURE_BANDS, GalaxyOptions, split_bands
from data_adapters.galaxy.recipe import FluxCrop, SkyCrop, flux_operations, picture_operations
from data_adapters.galaxy.sky import parse_angle, position_in, sky_cell
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
    suffixes: ClassVar[tuple[str, ...]] = (*fits.SUFFIXES, *hdf5.SUFFIXES, *raster.SUFFIXES)
    Options: ClassVar[type[GalaxyOptions]] = GalaxyOptions
    uniform: ClassVar[Mapping[str, str]] = UNIFORM
    # 2: the field; the stretch computes asinh by the logarithm. 3: BLANK of unsigned integers, fill values of HDF5
    version: ClassVar[int] = 3
    prepares_any_size: ClassVar[bool] = True
    most_views = 8  # the sky has no up, and a mirrored galaxy is as likely
    usual_views, usual_layers = 8, 2  # benchmarks/results/warm-start-trials.md

    def __init__(self, options: GalaxyOptions | None = None, **kwargs: Any) -> None:
        super().__init__(options, **kwargs)
        self._files = hdf5.Hdf5Files()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_files": hdf5.Hdf5Files()}

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

    def scan(self, root: Path, *, catalog: Catalog | None = None) -> Iterator[Record | Rejected]:
        """As BaseAdapter, and then bands: the catalogue may have added their names."""
        for found in super().scan(root, catalog=catalog):
            if isinstance(found, Rejected):
                yield found
                continue
            try:
                yield settle(found, self.bands)
            except BadFileError as error:
                yield rejected(found.uri, error)

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
        suffix = path.name.lower()
        if suffix.endswith(fits.SUFFIXES):
            return [self._inspect_fits(path)]
        if suffix.endswith(hdf5.SUFFIXES):
            return self._inspect_hdf5(path)
        return [self._inspect_picture(path)]

    def _inspect_fits(self, path: Path) -> Record:
        if COMPANION_FILE.search(path.name):
            raise BadFileError(
                "a weight map, mask or model, by the survey's file name",
                remedy="Skipped, no error: the images beside it are read. If it is an image, rename it.",
                path=path,
            )
        self._check_kind("flux")
        image, place = fits.fits_info(path, self.bands)
        meta = self._meta("flux", image.found, image.count, image.width, image.height, image.bits)
        if image.unit:
            meta["unit"] = image.unit
        return Record(uri=str(path), group="", meta={**meta, **place})

    def _inspect_hdf5(self, path: Path) -> list[Record]:
        file = self._files.get(path)
        table = hdf5.table_layout(file, self.bands)
        self._check_kind(table.kind)
        meta = self._meta(table.kind, table.found, table.count, table.width, table.height, table.bits)
        labels, measured = hdf5.columns(file, table)
        return [
            Record(uri=str(path), item=str(row), group="", label=label, meta={**meta, **extra})
            for row, (label, extra) in enumerate(zip(labels, measured, strict=True))
        ]

    def _inspect_picture(self, path: Path) -> Record:
        self._check_kind("picture")
        info = raster.raster_info(path)
        if info.bits != 8 or info.channels not in PICTURE_BANDS:
            raise BadFileError(
                f"a picture with {info.channels} channels of {info.bits} bits, neither display colours nor known flux",
                remedy="Save flux as FITS, or the picture as 8-bit grey or RGB.",
            )
        found = PICTURE_BANDS[info.channels]
        choose(found, info.channels, self.bands)
        meta = self._meta("picture", found, info.channels, info.width, info.height, info.bits)
        return Record(uri=str(path), group="", meta=meta)

    def _check_kind(self, kind: str) -> None:
        if self.options.kind not in ("auto", kind):
            raise BadFileError(
                f"holds {KINDS[kind]}, but the encoder, or the option kind, is for {KINDS[self.options.kind]}",
                remedy=f"Use an encoder that was pretrained on {KINDS[kind]}, or pretrain one on such files (without "
                "the option kind): pictures and flux need an encoder each.",
            )

    def _meta(
        self, kind: str, found: Sequence[str] | None, planes: int, width: int, height: int, bits: int
    ) -> dict[str, Any]:
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
        meta = {"kind": kind, "planes": planes, "size": [width, height], "bits": bits}
        return meta if found is None else {**meta, "file_bands": ",".join(found)}

    # --- pixels -----------------------------------------------------------------------------------------------------

    def pixels(self, record: Record) -> np.ndarray:
        """The whole cut-out: (H, W, bands) float32 flux after `clean_flux`, or (H, W, C) uint8.

        Raises:
            BadFileError: damaged, blank or dead, or of other kind or bands than the archive.
        """
        path = Path(record.uri)
        suffix = path.name.lower()
        if suffix.endswith(fits.SUFFIXES):
            self._check_kind("flux")
            return clean_flux(fits.read_fits(path, self.bands, named_bands(record)), background=self.options.background)
        if suffix.endswith(hdf5.SUFFIXES):
            file = self._files.get(path)
            table = hdf5.table_layout(file, self.bands)
            self._check_kind(table.kind)
            row = hdf5.read_row(file, table, int(record.item))
            return row if table.kind == "picture" else clean_flux(row, background=self.options.background)
        self._check_kind("picture")
        picture = raster.read_raster(path)
        picture = picture[:, :, None] if picture.ndim == 2 else picture
        if picture.dtype != np.uint8 or picture.shape[2] not in PICTURE_BANDS:
            raise BadFileError(
                "a picture that is neither 8-bit grey nor 8-bit RGB", remedy="Save it as 8-bit grey or RGB.", path=path
            )
        choose(PICTURE_BANDS[picture.shape[2]], picture.shape[2], self.bands)
        return picture

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
