"""The only door to albumentations: pipelines of pictures, ours and the library's transforms in one chain.

albumentations 2.0.8 keeps a random state of its own, which repeats in every worker and epoch, and its
`set_random_seed` gives every transform of a chain the same seed: two flips with probability one half then always agree.
Here all transforms of a chain draw, one after the other, from the generator of the view. So a view is a function of
(seed, epoch, row, view) and of nothing else.
"""

import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # 2.0.8 asks the network for its newest version otherwise

import albumentations as A
from albumentations.core.composition import BaseCompose
from albumentations.core.serialization import SERIALIZABLE_REGISTRY, shorten_class_name

# imported for the operations that they register
from data_adapters.augment import mr_slices, picture, sky, tissue  # noqa: F401
from data_adapters.augment.operations import PREFIX, PictureOperation, Scene
from data_adapters.errors import UserError
from data_adapters.pipeline_file import PICTURE_KEY, PipelineError, name_of, one_line, unknown_name

__all__ = ["A", "PicturePipeline", "Seeded"]

TRIALS = 16  # of a whole chain before a run: its steps come by chance
REFUSED = {
    "Normalize": "the encoder normalises by itself, so views keep values in [0, 1] (or 0 to 255)",
    "ToTensorV2": "views become tensors by themselves",
    "ToTensor3D": "views become tensors by themselves",
    "ReplayCompose": "a run repeats its views from its seed; use Compose",
}
Example = Callable[[], tuple[Any, Scene] | None]


class _Stream(random.Random):
    """Python's interface to a NumPy generator, since albumentations draws from both kinds."""

    rng: np.random.Generator

    def __init__(self) -> None:
        super().__init__(0)

    def follow(self, rng: np.random.Generator) -> "_Stream":
        """Draw from `rng` from now on, and forget half of a pair of normal numbers."""
        self.rng, self.gauss_next = rng, None
        return self

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return self.rng.random()

    def getrandbits(self, k: int) -> int:
        """A whole number of k bits."""
        return int.from_bytes(self.rng.bytes(-(-k // 8)), "little") >> (-k % 8)


class _Ours(A.ImageOnlyTransform):  # type: ignore[misc]
    """An operation of ours as a transform of albumentations; a class for each is made below."""

    kind: ClassVar[type[PictureOperation] | None] = None
    scene: Scene = None

    def __init__(self, **arguments: Any) -> None:
        assert self.kind is not None
        self.operation = self.kind(**arguments)
        super().__init__(p=self.operation.p)

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        """Change the image."""
        changed: np.ndarray = self.operation.change(img, self.random_generator, self.scene)
        return changed

    @classmethod
    def get_class_fullname(cls) -> str:
        """A short name that stays when modules are moved."""
        return f"{PREFIX}Operation" if cls.kind is None else cls.kind.file_name()

    def to_dict_private(self) -> dict[str, Any]:
        """Name and arguments."""
        return self.operation.entry(PICTURE_KEY)


OURS = {
    name: type(kind.__name__, (_Ours,), {"kind": kind, "__doc__": kind.__doc__})
    for name, kind in sorted(PictureOperation.named.items())
}


class Seeded:
    """A chain of albumentations transforms as a function (image, rng) -> image."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        self._compose = A.Compose(list(transforms))
        self._stream = _Stream()

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`image`: (H, W) or (H, W, C), uint8 or float32 in [0, 1]; returns the same dtype."""
        self._compose.set_random_state(rng, self._stream.follow(rng))
        out: np.ndarray = self._compose(image=image)["image"]
        return out


class PicturePipeline:
    """(view, rng, scene) -> view: the pipeline of a file, on views of `size` pixels.

    A view of flux is stretched first, unless the file says where by `lejepa.AsinhStretch`. Channels that a view does
    without (a missing MR sequence) stay black.

    Args:
        content: of `data_adapters.pipeline_file.content_of`.
        size: side of a view, pixels.

    Raises:
        PipelineError: an unknown name, a wrong argument, or an operation on flux after the stretch.
    """

    def __init__(self, content: Mapping[str, Any], *, size: int) -> None:
        self._name, self._size = name_of(content), size
        self._compose = build_transforms(content)
        self._leaves = list(_leaves(self._compose))
        self._ours = [transform for _, transform in self._leaves if isinstance(transform, _Ours)]
        self._stretch = None if any(_stage(one) == "stretch" for one in self._ours) else sky.AsinhStretch(vary=0)
        self._stream = _Stream()

    def __call__(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """The changed view, (size, size, C) of the same type.

        Raises:
            PipelineError: a transform fails on this view, or the result is no view.
        """
        if scene is not None and self._stretch is not None:
            image = self._stretch(image, rng, scene)
        several = scene is None and image.dtype == np.float32 and image.shape[2] > 1
        empty = ~image.any(axis=(0, 1)) if several else None
        self._compose.set_random_state(rng, self._stream.follow(rng))
        for transform in self._ours:
            transform.scene = scene
        try:
            # Compose draws even where its p is 1, which our own recipes do not
            out: np.ndarray = self._compose(image=image, force_apply=self._compose.p >= 1)["image"]
        except (MemoryError, UserError):
            raise
        except Exception as error:
            raise PipelineError(f"{self._name}: {one_line(error)}.", remedy=_views_are(image, self._size)) from error
        out = out[:, :, None] if getattr(out, "ndim", 0) == 2 else out
        if not isinstance(out, np.ndarray) or out.dtype != image.dtype or out.shape != image.shape:
            raise PipelineError(
                f"{self._name} gives {_form(out)}.",
                remedy=f"{_views_are(image, self._size)} Leave out what changes size or type: the modality crops.",
            )
        if empty is not None and empty.any():
            out[:, :, empty] = 0
        return out

    def check(self, example: Example, rng: np.random.Generator) -> None:
        """Try every transform by itself, and then the whole chain a few times.

        Args:
            example: gives a view before the pipeline and its scene; None where the modality does not know it yet.
            rng: of the trials.

        Raises:
            PipelineError: with the entry that fails.
        """
        for place, transform in self._leaves:
            given = example()
            if given is None:
                return
            image, scene = given
            if scene is not None and _stage(transform) == "view":
                image = np.ascontiguousarray(sky.AsinhStretch(vary=0)(image, rng, scene))
            transform.set_random_state(rng, self._stream.follow(rng))
            transform.scene = scene
            try:
                transform(image=image, force_apply=True)
            except Exception as error:
                name = transform.get_class_fullname()
                raise PipelineError(
                    f"{self._name}, entry {place} ({name}): {one_line(error)}.", remedy=_views_are(image, self._size)
                ) from error
        for _ in range(TRIALS):
            given = example()
            if given is None:
                return
            out = self(given[0], rng, given[1])
            if out.dtype == np.float32 and not (np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1):
                raise PipelineError(
                    f"{self._name} gives values from {out.min():.3g} to {out.max():.3g}.",
                    remedy="Views hold values in [0, 1]; leave out what normalises or rescales them.",
                )


def build_transforms(content: Mapping[str, Any]) -> A.Compose:
    """The pipeline of a file's content.

    Raises:
        PipelineError: as PicturePipeline.
    """
    where = name_of(content)
    if "transform" not in content:
        raise PipelineError(
            f"{where} is a list of steps for volumes, and this modality gives pictures.",
            remedy="Give a pipeline saved by albumentations; `lejepa-med augment --modality mri --show` prints one.",
        )
    built = _built(content["transform"], where, "")
    pipeline = built if isinstance(built, A.Compose) else A.Compose([built])
    _check_stages(pipeline, where)
    return pipeline


def _built(entry: Any, where: str, place: str) -> Any:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(PICTURE_KEY), str):
        raise PipelineError(
            f"{where}{f', entry {place}' if place else ''}: {PICTURE_KEY} is missing.",
            remedy=f"An entry is {{{PICTURE_KEY}: NAME, p: 0.5, ...}}.",
        )
    name = shorten_class_name(entry[PICTURE_KEY])
    label = f"{where}, entry {place} ({name})" if place else f"{where} ({name})"
    if name in REFUSED:
        raise PipelineError(f"{label} has no place in a pipeline.", remedy=f"Leave it out: {REFUSED[name]}.")
    kind = OURS.get(name) or SERIALIZABLE_REGISTRY.get(name)
    if kind is None or not (name in OURS or kind.__module__.startswith("albumentations.")):
        known = [one for one in SERIALIZABLE_REGISTRY if "." not in one and one not in REFUSED]
        raise unknown_name(label, name, [*OURS, *known])
    arguments = {key: value for key, value in entry.items() if key != PICTURE_KEY}
    if "p" not in arguments and name not in ("Compose", "Sequential"):
        raise PipelineError(f"{label} has no p.", remedy="Write its probability, such as p: 0.5 or p: 1.")
    if any("/" in text or "\\" in text for text in _texts({**arguments, "transforms": None})):
        raise PipelineError(f"{label} names a file.", remedy="Leave it out: a run carries its pipeline, but no files.")
    if "transforms" in arguments:
        inner = arguments["transforms"]
        if not isinstance(inner, list):
            raise PipelineError(f"{label}: transforms is no list.", remedy="Write its entries one below the other.")
        prefix = f"{place}." if place else ""
        arguments["transforms"] = [_built(one, where, f"{prefix}{k}") for k, one in enumerate(inner, start=1)]
    # else albumentations warns of arguments that it does not know, and takes its defaults for some that are wrong
    checked = hasattr(getattr(kind, "__init__", None), "__signature__")
    strict = {"strict": True} if checked and name not in OURS else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to use a newer or faster transform
            return kind(**arguments, **strict)
    except Exception as error:
        remedy = f"Correct its arguments.{_arguments(name)}"
        raise PipelineError(f"{label}: {one_line(error)}.", remedy=remedy) from error


def _arguments(name: str) -> str:
    if name not in OURS:
        return ""
    kind = PictureOperation.named[name]
    return f" {name} has {', '.join(kind.model_fields)}."


def _check_stages(pipeline: A.Compose, where: str) -> None:
    """Refuse operations on flux behind the stretch, and others before it."""
    stages = [
        (str(place), transform.get_class_fullname(), {_stage(leaf) for _, leaf in _leaves(transform, str(place))})
        for place, transform in enumerate(pipeline.transforms, start=1)
    ]
    stretched = next((k for k, (_, _, found) in enumerate(stages) if "stretch" in found), None)
    for k, (place, name, found) in enumerate(stages):
        label = f"{where}, entry {place} ({name})"
        if stretched is None and "flux" in found:
            raise PipelineError(
                f"{label} works on flux, and the pipeline does not say where flux is stretched.",
                remedy="Add lejepa.AsinhStretch (p: 1) behind the operations on flux.",
            )
        if stretched is not None and k < stretched and found != {"flux"}:
            raise PipelineError(
                f"{label} cannot work on flux, which is stretched behind it.",
                remedy="Move it behind lejepa.AsinhStretch: before it stand only lejepa.Dust, lejepa.Seeing and "
                "lejepa.DetectorNoise, since albumentations cuts values above 1.",
            )
        if stretched is not None and k > stretched and found & {"flux", "stretch"}:
            raise PipelineError(
                f"{label} works on flux, which is stretched before it.",
                remedy="Move it before lejepa.AsinhStretch, of which there is one, by itself and with p: 1.",
            )
    if stretched is not None and (stages[stretched][2] != {"stretch"} or pipeline.transforms[stretched].p < 1):
        raise PipelineError(
            f"{where}, entry {stages[stretched][0]}: lejepa.AsinhStretch must always happen.",
            remedy="Write it by itself, outside of containers, with p: 1.",
        )


def _leaves(transform: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every transform that is no container, with its place such as '4.2'."""
    if not isinstance(transform, BaseCompose):
        yield place, transform
        return
    for number, inner in enumerate(transform.transforms, start=1):
        yield from _leaves(inner, f"{place}.{number}" if place else str(number))


def _stage(transform: Any) -> str:
    return transform.kind.stage if isinstance(transform, _Ours) and transform.kind is not None else "view"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(one)


def _form(out: Any) -> str:
    return f"{' x '.join(map(str, out.shape))} {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__


def _views_are(image: np.ndarray, size: int) -> str:
    channels = image.shape[2]
    what = "uint8" if image.dtype == np.uint8 else "float32 in [0, 1]"
    return f"Views here are {size} x {size} with {channels} channel{'' if channels == 1 else 's'}, {what}."
