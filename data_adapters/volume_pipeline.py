"""The only door to MONAI's transforms: pipelines of volumes, ours and the library's in one list.

MONAI's own configuration files evaluate Python. These do not: an entry is a name from a fixed part of
`monai.transforms`, or one of ours, with plain values as arguments. Everything random is drawn from the view's
generator, so a view is a function of (seed, epoch, row, view).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms.compose import Compose, OneOf, RandomOrder, SomeOf
from monai.transforms.croppad import array as croppad
from monai.transforms.intensity import array as intensity
from monai.transforms.smooth_field import array as smooth_field
from monai.transforms.spatial import array as spatial
from monai.transforms.transform import Randomizable, Transform
from pydantic import ValidationError

# imported for the operations that they register
from data_adapters.augment import mr_volumes  # noqa: F401
from data_adapters.augment.operations import Scene, VolumeOperation
from data_adapters.errors import UserError
from data_adapters.pipeline_file import VOLUME_KEY, PipelineError, name_of, one_line, unknown_name

TRIALS = 4  # of a whole chain before a run
CONTAINERS = {kind.__name__: kind for kind in (Compose, OneOf, RandomOrder, SomeOf)}
LIBRARY = {
    name: kind
    for module in (intensity, spatial, croppad, smooth_field)
    for name, kind in vars(module).items()
    if inspect.isclass(kind) and issubclass(kind, Transform) and kind.__module__ == module.__name__
} | CONTAINERS
Example = Callable[[], tuple[Any, Scene] | None]


class _Ours(Transform):  # type: ignore[misc]
    """An operation of ours among MONAI's transforms, on (C, D, H, W)."""

    def __init__(self, operation: VolumeOperation) -> None:
        self.operation = operation
        self.rng: np.random.Generator | None = None

    def __call__(self, img: Any, *, force: bool = False) -> Any:
        """The changed image."""
        assert self.rng is not None
        # cut, since transforms before it may leave the range; a copy, since operations may write into what they get
        cubes = list(np.clip(torch.as_tensor(img).numpy(), 0, 1).astype(np.float32, copy=False))
        changed = (self.operation.change if force else self.operation)(cubes, self.rng, None)
        return torch.from_numpy(np.stack(changed))


class VolumePipeline:
    """(cubes, rng, scene) -> cubes: the pipeline of a file, on views of `size` voxels.

    Cubes are float32 (D, H, W), one a channel that the view shows. MONAI gets them as one (C, D, H, W) tensor; what
    comes out is cut to [0, 1].

    Args:
        content: of `data_adapters.pipeline_file.content_of`.
        size: side of a view, voxels.

    Raises:
        PipelineError: an unknown name or a wrong argument.
    """

    def __init__(self, content: Mapping[str, Any], *, size: int) -> None:
        self._name, self._size = name_of(content), size
        self._steps = build_steps(content)

    def __call__(self, cubes: Sequence[np.ndarray], rng: np.random.Generator, scene: Scene) -> list[np.ndarray]:
        """The changed cubes.

        Raises:
            PipelineError: a transform fails on this view, or the result is no view.
        """
        image: Any = torch.from_numpy(np.stack(cubes))
        _follow(self._steps, rng)
        tracked = get_track_meta()
        set_track_meta(False)  # where a view came from, which nobody asks for here, costs MONAI time
        try:
            for step in self._steps:
                image = step(image)
        except (MemoryError, UserError):
            raise
        except Exception as error:
            raise PipelineError(f"{self._name}: {one_line(error)}.", remedy=self._views(cubes)) from error
        finally:
            set_track_meta(tracked)
        out = torch.as_tensor(image).numpy().astype(np.float32, copy=False)
        if out.shape != (len(cubes), *(self._size,) * 3):
            raise PipelineError(
                f"{self._name} gives {' x '.join(map(str, out.shape))}.",
                remedy=f"{self._views(cubes)} Leave out what changes the size: the modality crops.",
            )
        if not np.isfinite(out).all():
            raise PipelineError(
                f"{self._name} gives NaN or infinite values.", remedy=f"{self._views(cubes)} Try its steps one by one."
            )
        return list(np.clip(out, 0, 1))

    def _views(self, cubes: Sequence[np.ndarray]) -> str:
        return f"Views here are {len(cubes)} x {self._size} x {self._size} x {self._size} float32 in [0, 1]."

    def check(self, example: Example, rng: np.random.Generator) -> None:
        """Try every transform by itself, and then the whole list a few times.

        Args:
            example: gives a view before the pipeline; None where the modality does not know it yet.
            rng: of the trials.

        Raises:
            PipelineError: with the entry that fails.
        """
        for place, step in _leaves(self._steps):
            given = example()
            if given is None:
                return
            _follow([step], rng)
            usual = getattr(step, "prob", None)
            try:
                if usual is not None:
                    step.prob = 1.0
                image = torch.from_numpy(np.stack(given[0]))
                step(image, force=True) if isinstance(step, _Ours) else step(image)
            except Exception as error:
                raise PipelineError(
                    f"{self._name}, entry {place} ({_name(step)}): {one_line(error)}.", remedy=self._views(given[0])
                ) from error
            finally:
                if usual is not None:
                    step.prob = usual
        for _ in range(TRIALS):
            given = example()
            if given is None:
                return
            self(given[0], rng, given[1])


def build_steps(content: Mapping[str, Any]) -> list[Any]:
    """The transforms of a file's content.

    Raises:
        PipelineError: as VolumePipeline.
    """
    where = name_of(content)
    if "transforms" not in content:
        raise PipelineError(
            f"{where} is a pipeline of albumentations, and this modality gives volumes.",
            remedy="Write a list 'transforms'; `lejepa-med augment --modality mri3d --show` prints one.",
        )
    return [_built(entry, where, str(k)) for k, entry in enumerate(content["transforms"], start=1)]


def _built(entry: Any, where: str, place: str) -> Any:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(VOLUME_KEY), str):
        raise PipelineError(
            f"{where}, entry {place}: {VOLUME_KEY} is missing.",
            remedy=f"An entry is {{{VOLUME_KEY}: NAME, prob: 0.5, ...}}.",
        )
    name: str = entry[VOLUME_KEY]
    label = f"{where}, entry {place} ({name})"
    short = name.removeprefix("monai.transforms.")
    if name not in VolumeOperation.named and short not in LIBRARY:
        raise unknown_name(label, name, [*VolumeOperation.named, *LIBRARY])
    arguments = {key: value for key, value in entry.items() if key != VOLUME_KEY}
    inner = arguments.pop("transforms", None)
    if inner is not None:
        if not isinstance(inner, list):
            raise PipelineError(f"{label}: transforms is no list.", remedy="Write its entries one below the other.")
        built = [_built(one, where, f"{place}.{k}") for k, one in enumerate(inner, start=1)]
        if name in VolumeOperation.named:
            built = [one.operation if isinstance(one, _Ours) else one for one in built]
        arguments["transforms"] = built
    try:
        if name in VolumeOperation.named:
            return _Ours(VolumeOperation.named[name](**arguments))
        known = inspect.signature(LIBRARY[short].__init__).parameters
        if wrong := [key for key in arguments if key not in known]:
            raise TypeError(f"it has no argument {', '.join(wrong)}, but {', '.join(list(known)[1:])}")
        return LIBRARY[short](**arguments)
    except ValidationError as error:
        kind = VolumeOperation.named[name]
        remedy = f"Correct its arguments: {name} has {', '.join(kind.model_fields)}."
        raise PipelineError(f"{label}: {one_line(error)}.", remedy=remedy) from error
    except Exception as error:
        raise PipelineError(f"{label}: {one_line(error)}.", remedy="Correct its arguments.") from error


def _follow(steps: Sequence[Any], rng: np.random.Generator) -> None:
    """Let every transform, those in containers included, draw from `rng`, one after the other."""
    state = np.random.RandomState(rng.bit_generator)

    def follow(one: Any) -> None:
        if isinstance(one, _Ours):
            one.rng = rng
        elif isinstance(one, Compose):
            Randomizable.set_random_state(one, state=state)  # its own method would give each child a seed instead
            for inner in one.transforms:
                follow(inner)
        elif isinstance(one, Randomizable):
            one.set_random_state(state=state)

    for step in steps:
        follow(step)


def _leaves(steps: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for number, step in enumerate(steps, start=1):
        if isinstance(step, Compose):
            yield from _leaves(step.transforms, f"{prefix}{number}.")
        else:
            yield f"{prefix}{number}", step


def _name(step: Any) -> str:
    return step.operation.file_name() if isinstance(step, _Ours) else type(step).__name__
