"""BaseAdapter to derive a modality from, beside the names of `contract` and `record`.

A new modality derives from BaseAdapter and writes three methods: `inspect` (headers of one file -> records), `read`
(one training source) and `operations` (what happens to a random part of it) or `augment` (source -> one view).
Everything random comes from the generator that is passed in.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from data_adapters.augment.operations import Chain, Crop, Operation, Scene, View
from data_adapters.augment.picture import RandomCrop
from data_adapters.catalog import Catalog
from data_adapters.contract import Adapter, AdapterOptions, Augment, Image, ViewKind
from data_adapters.errors import BadFileError, MissingExtraError, UserError
from data_adapters.files import SIDECARS, Files, check_content, walk
from data_adapters.groups import Places
from data_adapters.record import BY_NAME, Caution, Record, Rejected, Spec
from data_adapters.tables import count

# loader workers are the parallelism: OpenCV's own threads only contend, and a forked worker does not inherit them
cv2.setNumThreads(0)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SIDECARS",
    "SMALL_SIZE",
    "Adapter",
    "AdapterOptions",
    "Augment",
    "BaseAdapter",
    "Caution",
    "Files",
    "Image",
    "Record",
    "Rejected",
    "Spec",
    "ViewKind",
    "mixed",
    "rejected",
    "to_tensor",
    "walk",
]

SMALL_SIZE = 64
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_tensor(image: Image) -> Tensor:
    """(H, W, C) or (H, W) -> (C, H, W) tensor, (D, H, W, C) -> (C, D, H, W), of the same values.

    Raises:
        TypeError: another dtype; intensity must be mapped by the modality's policy, never by the dtype's range.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype not in (np.uint8, np.float32):
        raise TypeError(f"views and prepared images are uint8 or float32, not {image.dtype}")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] > 1 and image.flags.c_contiguous:
        planes = np.empty((image.shape[2], *image.shape[:2]), np.uint8)
        cv2.split(image, list(planes))  # into these planes, in a fifth of NumPy's time
        return torch.from_numpy(planes)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))


UNREADABLE = "Copy or export the file again, and open it in another program to see whether it is whole."


def rejected(path: Path | str, error: Exception) -> Rejected:
    """The Rejected for a failed read. Foreign readers raise what they like on damaged files; the walk must go on.

    Raises:
        MissingExtraError: the reader is not installed, which is no fault of the file.
    """
    if isinstance(error, MissingExtraError):
        raise error
    if isinstance(error, BadFileError):
        return Rejected(uri=str(path), reason=error.cause, remedy=error.remedy)
    # not the error's own words: they quote paths and header values, and reasons are counted, shown and shared
    return Rejected(uri=str(path), reason=f"unreadable ({type(error).__name__})", remedy=UNREADABLE)


def foreign_format(adapter: str) -> str:
    """The reason why a file is refused that no reader of the adapter takes: it may be no image at all."""
    return f"not a format that the {adapter} adapter reads"


def mixed(uniform: Mapping[str, str], counts: Mapping[str, Mapping[str, int]]) -> UserError | None:
    """The refusal of an archive whose records differ in a `uniform` fact; `counts[fact]`: records of each value."""
    for key, remedy in uniform.items():
        if len(found := counts.get(key, {})) > 1:
            ordered = sorted(found.items(), key=lambda one: -one[1])
            listed = "; ".join(f"{value} in {count(number, 'record')}" for value, number in ordered)
            return UserError(f"The archive mixes {key}: {listed}.", remedy=remedy)
    return None


class BaseAdapter:
    """Scan by suffix, seeded views, and a describe() that rebuilds the adapter. Derive one class per modality."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    Options: ClassVar[type[AdapterOptions]] = AdapterOptions
    # Raise when pixels that `prepare` gives change: an encoder then refuses to run under the other version.
    version: ClassVar[int] = 1
    # facts of meta that `fit` wants equal in all records, with the remedy where they differ; scan says so beforehand
    uniform: ClassVar[Mapping[str, str]] = {}
    small_size: ClassVar[int] = SMALL_SIZE  # side of a global view where a small machine trains, pixels
    # number and side of global views where a small machine starts a CNN from weights of others; None: as from scratch
    warm_views: ClassVar[tuple[int, int] | None] = None
    # items may be larger than memory: `meta.region` picks a rectangle of level 0, and no more than that is decoded
    reads_regions: ClassVar[bool] = False
    dims: ClassVar[Literal[2, 3]] = 2  # 3: views are cubes, and the backbone must be a 3-D one
    # how vectors are formed unless the user chooses: fixed views that are averaged, at most `most_views`, and last
    # layers of the backbone that are joined, 1 or 2
    usual_views: ClassVar[int] = 1
    usual_layers: ClassVar[int] = 1
    prepares_any_size: ClassVar[bool] = False  # whether `prepare` follows options.prepared_size

    def __init__(self, options: AdapterOptions | None = None, **kwargs: Any) -> None:
        self.options: Any = options if options is not None else self.Options(**kwargs)
        # the name under which registry.create finds this class again; it sets its own for plug-ins and files
        built_in = type(self).__module__.startswith("data_adapters.")
        self.reference = self.name if built_in else f"{type(self).__module__}:{type(self).__qualname__}"
        self._augments: dict[tuple[ViewKind, int], Augment] | None = None

    # --- what a modality writes -------------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """RGB with values centred at .5; override for other channels or statistics."""
        return self.make_spec(channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)

    @property
    def most_images(self) -> int:
        """The most images that `prepare` gives for one record: slices of a volume, tiles of a slide."""
        return 1

    @property
    def most_views(self) -> int:
        """How many fixed views of an image show the same thing, so that their vectors may be averaged: 1, 2, 4 or 8.

        2: also the image mirrored left to right, along its columns. 4: also top to bottom, and both. 8: also these four
        with rows and columns exchanged, or for volumes mirrored along the planes. Declare no more than `augment` does
        to training views.
        """
        return 1

    def inspect(self, path: Path, root: Path) -> Iterable[Record]:
        """Headers of one file -> its records (usually one). Raise BadFileError to refuse the file.

        Leave the group empty where the file does not tell it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define inspect()")

    def read(self, record: Record, rng: np.random.Generator) -> Any:
        """One training source. Raise BadFileError on bad data."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def augment(self, kind: ViewKind, size: int) -> Augment:
        """A callable (source, rng) -> (size, size, C) image. Built once per process, called once per view.

        Override it, or `operations` and, where a random part of an array will not do, `crop`.
        """
        return View(self.crop(kind, size), Chain(self.operations()), self.finish)

    def crop(self, kind: ViewKind, size: int) -> Crop:
        """A callable (source, rng) -> the (size, size, C) part of a source that a view shows, and its scene.

        Here `operations` begin, and pipelines of the option `augment`. The scene is what they need to know beside the
        pixels, mostly nothing. The default is a random part of an (H, W, C) array: 0.3 to 1 of its area, of local views
        0.05 to 0.3.
        """
        return RandomCrop(size=size, area=(0.3, 1.0) if kind == "global" else (0.05, 0.3))

    def operations(self) -> Sequence[Operation]:
        """What happens to a crop unless the option `augment` names a pipeline; `lejepa-med augment --show` shows it."""
        raise NotImplementedError(f"{type(self).__name__} must define augment() or operations()")

    def shown_operations(self) -> Sequence[Operation]:
        """`operations`, for a file to start from.

        Raises:
            UserError: this modality writes its views in code, or needs to know more of the archive.
        """
        if type(self).augment is not BaseAdapter.augment:
            raise UserError(
                f"The modality '{self.reference}' makes its views in code, so there is no recipe to show.",
                remedy="Start from the recipe of another one, such as: lejepa-med augment --modality images --show",
            )
        return self.operations()

    def finish(self, image: Any, scene: Scene) -> Image:
        """A crop after its operations, in the form that views have."""
        finished: Image = image
        return finished

    def view_example(self, size: int, rng: np.random.Generator) -> tuple[Any, Scene] | None:
        """What `crop` may give, of random pixels, so that a pipeline is tried before an archive is read.

        None: not known yet, or by this modality not told; the first view tries the pipeline then.
        """
        return None

    def prepare(self, record: Record) -> Tensor:
        """Deterministic pixels for embedding, (n, C, size, size); size is options.prepared_size."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare()")

    # columns of a table with a row for each part, beside `whole`: facts that `parts` writes into meta
    part_columns: ClassVar[tuple[str, ...]] = ()

    def parts(self, record: Record) -> list[Record]:
        """The tiles of a slide as records of their own, each with its place in `item` and in `part_columns` of meta.

        `prepare` of a part gives one image, equal to the one that `prepare` of the whole record may give for it. Reads
        no file. A modality with `part_columns` overrides it; a record that has no parts stands for itself.
        """
        return [record]

    def outline(self, record: Record) -> np.ndarray | None:
        """Where the adapter found something to embed, (h, w) bool over the whole picture; None: everywhere."""
        return None

    def fit(self, records: Sequence[Record]) -> "BaseAdapter":
        """Return the adapter with options learnt from the archive; the default learns nothing.

        Called once, after scan and before training. What is learnt goes into the options, so that describe() saves it.
        """
        return self

    def cautions(self, records: Sequence[Record]) -> list[Caution]:
        """What a user must know of these records before using their vectors, one entry for each kind of problem."""
        return []

    def complete(self, record: Record) -> Record:
        """A record that no scan made, because its file came alone with a place in it, with what the headers say.

        Raises:
            BadFileError: the file cannot be read.
        """
        return record

    # --- what it gets -----------------------------------------------------------------------------------------------

    def make_spec(self, *, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Spec:
        """A Spec with the options' sizes and view counts, and with their mean and std where they have them.

        Raises:
            UserError: those are of another number of channels.
        """
        o = self.options
        if o.mean is not None:
            mean, std = o.mean, o.std
        if len(mean) != channels:
            raise UserError(
                f"The options mean and std have {count(len(mean), 'number')}, but the images have "
                f"{count(channels, 'channel')}.",
                remedy="Give one number for each channel, or leave out mean and std.",
            )
        return Spec(
            channels=channels,
            mean=mean,
            std=std,
            n_global=o.n_global,
            n_local=o.n_local,
            global_size=o.global_size,
            local_size=o.local_size,
            dims=self.dims,
            embed_size=o.prepared_size if self.prepares_any_size else o.global_size,
        )

    def normalised_as(self, mean: Sequence[float], std: Sequence[float]) -> "BaseAdapter":
        """The adapter with the normalisation of weights that training starts from; call it after `fit`.

        As many channels as the weights: their own numbers, channel by channel. Another number: their average for every
        channel, so that black and white keep the values that the weights know. Unchanged stays an adapter whose mean
        and std were chosen, or measured on its own kind of data: then they are neither .5 nor ImageNet's.

        Args:
            mean: of values in [0, 1], one for each channel of the weights.
            std: likewise.
        """
        now = self.spec
        usual = ((0.5,) * now.channels, (0.5,) * now.channels), (IMAGENET_MEAN, IMAGENET_STD)
        if self.options.mean is not None or (now.mean, now.std) not in usual:
            return self
        if len(mean) != now.channels:
            mean, std = [sum(mean) / len(mean)] * now.channels, [sum(std) / len(std)] * now.channels
        taken = copy.copy(self)  # through __getstate__, so without pipelines and open files
        # eight digits: an average of .456, .456 and .456 is .456
        update = {"mean": tuple(round(m, 8) for m in mean), "std": tuple(round(s, 8) for s in std)}
        taken.options = self.options.model_copy(update=update)
        return taken

    def verify(self, record: Record) -> None:
        """Decode the record once, so that scan finds damage that headers hide. Raise BadFileError.

        The default is the whole of `prepare`; override where a cheaper read proves the same.
        """
        self.prepare(record)

    def scan(self, root: Path, *, catalog: Catalog | None = None) -> Iterator[Record | Rejected]:
        """Headers of every file below `root` (or of the file `root`), in sorted order, read in this process.

        What the walk leaves out comes first, as Rejected. `data_adapters.scan` reads the same in several processes.
        """
        files, left_out = Files(root.resolve()), list[Rejected]()
        for _ in walk(files.root, left_out=left_out.append):
            pass
        yield from left_out
        yield from self.scan_files(files, catalog=catalog)

    def scan_files(self, files: Files, *, catalog: Catalog | None = None) -> Iterator[Record | Rejected]:
        """The records of `files` and the refused ones; every file is either read or refused.

        A catalogue, when given, supplies group, label, split and further columns (as `meta`) by path. A record that is
        still without a group gets that of its folder, or one of its own; see `data_adapters.groups`.
        """
        return self.combine(self._with_groups(files, catalog))

    def _with_groups(self, files: Files, catalog: Catalog | None) -> Iterator[Record | Rejected]:
        originals = files.originals
        paths = (originals.get(path, path) for path in files) if originals else files
        places = Places(paths, files.root, group_by=self.options.group_by, suffixes=self.suffixes)
        for found in self.inspect_all(files):
            if isinstance(found, Rejected):
                yield found
                continue
            if catalog is not None:
                found = catalog.apply(found, files.root)
            try:
                if originals:
                    path = Path(found.uri)
                    original = replace(found, uri=str(originals.get(path, path)))
                    yield replace(self.grouped(original, files.root, places), uri=found.uri)
                else:
                    yield self.grouped(found, files.root, places)
            except BadFileError as error:
                yield rejected(found.uri, error)

    def combine(self, found: Iterator[Record | Rejected]) -> Iterator[Record | Rejected]:
        """The last step of a scan: records with the catalogue's facts and their groups -> final records.

        Override where several records make one (sequences of a session), or to refuse by what a catalogue may add.
        """
        return found

    def grouped(self, record: Record, root: Path, places: Places) -> Record:
        """The record with its group. `record.uri` is the file's original path below `root` (see `Files`).

        Override where the group follows from what a catalogue may add, such as a position; a record that has a group
        keeps it, and what nothing else is known of goes by its place. Raise BadFileError to refuse.
        """
        if not record.group and (told := self.group_of_name(Path(record.uri).name)):
            record = replace(record, group=told, grouped_by=BY_NAME)
        return places.settle(record)

    def group_of_name(self, name: str) -> str:
        """Return the group that a file's name tells, or an empty text; override where names tell it."""
        return ""

    def inspect_all(self, files: Files) -> Iterator[Record | Rejected]:
        """Inspect file by file; override where several files make one record (a DICOM series).

        Do the reading through `files.each`, and the grouping after it.
        """
        for found in files.each(self.try_inspect, files, files.root):
            yield from found

    def companions(self, path: Path) -> Iterable[Path]:
        """Further files that `inspect` reads for `path`; when one of them changes, a scan reads `path` again."""
        return ()

    def try_inspect(self, path: Path, root: Path) -> list[Record | Rejected]:
        """`inspect`, with any failure turned into a Rejected."""
        if not path.name.lower().endswith(self.suffixes):
            remedy = f"Save it as {', '.join(self.suffixes)}."
            return [Rejected(uri=str(path), reason=foreign_format(self.name), remedy=remedy)]
        try:
            check_content(path)
            return list(self.inspect(path, root))
        except Exception as error:
            return [rejected(path, error)]

    def views(self, source: Any, rng: np.random.Generator) -> list[Tensor]:
        """`n_global` then `n_local` views; view v uses the v-th child of `rng`, so views are independent."""
        if self._augments is None:
            o = self.options
            self._augments = {
                ("global", o.global_size): self._view("global", o.global_size),
                ("local", o.local_size): self._view("local", o.local_size),
            }
        o = self.options
        plan: list[tuple[ViewKind, int]] = [("global", o.global_size)] * o.n_global
        plan += [("local", o.local_size)] * o.n_local
        return [
            to_tensor(self._augments[kind, size](source, child))
            for (kind, size), child in zip(plan, rng.spawn(len(plan)), strict=True)
        ]

    def _view(self, kind: ViewKind, size: int) -> Augment:
        """The modality's own view, or with the pipeline of the option `augment` in place of `operations`."""
        if self.options.augment is None:
            return self.augment(kind, size)
        return View(self.crop(kind, size), self.pipeline(size), self.finish)

    def pipeline(self, size: int) -> Callable[[Any, np.random.Generator, Scene], Any]:
        """The pipeline of the option `augment`, for views of `size` pixels or voxels.

        Raises:
            PipelineError: it does not fit this modality.
        """
        # imported here: the libraries take a second that runs without a file need not spend
        if self.dims == 3:
            from data_adapters.volume_pipeline import VolumePipeline

            return VolumePipeline(self.options.augment, size=size)
        from data_adapters.pipeline import PicturePipeline

        return PicturePipeline(self.options.augment, size=size)

    def check_pipeline(self) -> None:
        """Try the pipeline of the option `augment` on random pixels, every step of it, as far as these are known.

        Raises:
            PipelineError: with the step that fails.
        """
        if self.options.augment is None:
            return
        for size in sorted({self.options.global_size, self.options.local_size}):
            pipeline: Any = self.pipeline(size)
            rng = np.random.default_rng(0)
            pipeline.check(lambda size=size, rng=rng: self.view_example(size, rng), rng)

    def describe(self) -> dict[str, Any]:
        """The adapter's reference, pipeline version and options as JSON; without embed_size, mean ... if unset.

        So a description, and what is recognised by it, equals that of a release without these four.
        """
        unset = {name for name in ("embed_size", "mean", "std", "augment") if getattr(self.options, name) is None}
        return {
            "adapter": self.reference,
            "version": self.version,
            "options": self.options.model_dump(mode="json", exclude=unset),
        }

    def local_options(self) -> dict[str, Any]:
        """Options that describe() leaves out, such as folders of this machine: a process beside this one needs them."""
        fields = type(self.options).model_fields.items()
        return {name: getattr(self.options, name) for name, field in fields if field.exclude}

    def __getstate__(self) -> dict[str, Any]:
        # Pipelines and open handles are rebuilt in each worker: a handle must not cross a process border.
        return {**self.__dict__, "_augments": None}
