"""Pipeline files: what a user writes in place of a modality's recipe, as plain content that is saved with a run.

Pictures: a pipeline as albumentations' `A.save(pipeline, file, data_format="yaml")` writes it, with a key `transform`.
Volumes: a key `transforms` with a list of MONAI's transforms, each by its name (`_target_`) and arguments.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_adapters.errors import UserError

if TYPE_CHECKING:  # the command line's settings need this module, and must not wait for NumPy
    from data_adapters.augment.operations import Operation

PICTURE_KEY, VOLUME_KEY = "__class_fullname__", "_target_"  # of an entry's name
FILE = "file"  # key of the file's name, which errors and reports show
MOST_BYTES = 2**20
SHOW = "`lejepa-med augment --modality MODALITY --show` prints one that works"
# how many mirrored and turned images a pipeline makes alike
TURNS = {"lejepa.Symmetry": 8, "D4": 8, "lejepa.Mirror": 2, "HorizontalFlip": 2}


class PipelineError(UserError):
    """A pipeline file that cannot be used: the cause names the file and the entry."""


def content_of(given: Any) -> Any:
    """The content of a pipeline file that is given by its path, with every name and argument checked.

    What is no path comes back as it is, since a run and an encoder carry the content.

    Raises:
        PipelineError: no such file, or what is wrong in it.
    """
    if not isinstance(given, str | Path):
        return given
    content = read_file(Path(given).expanduser())
    if "transforms" in content:
        from data_adapters.volume_pipeline import build_steps

        build_steps(content)
    else:
        from data_adapters.pipeline import build_transforms

        build_transforms(content)
    return content


def read_file(path: Path) -> dict[str, Any]:
    """The content of a pipeline file, with the file's name in it; plain values only.

    Raises:
        PipelineError: it cannot be read, or is no pipeline.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PipelineError(f"{path} is larger than 1 MiB.", remedy=f"Give a pipeline file; {SHOW}.")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PipelineError(f"There is no pipeline file {path}.", remedy=f"Check the path; {SHOW}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PipelineError(f"{path} cannot be read as YAML: {error}.", remedy=f"Correct the file; {SHOW}.") from error
    keys = [key for key in ("transform", "transforms") if isinstance(content, dict) and key in content]
    if len(keys) != 1 or not isinstance(content[keys[0]], dict if keys == ["transform"] else list):
        raise PipelineError(
            f"{path} is no pipeline: it needs either 'transform' (a pipeline saved by albumentations) or 'transforms' "
            "(a list of steps for volumes).",
            remedy=f"Save it with A.save(pipeline, FILE, data_format='yaml'); {SHOW}.",
        )
    content = {FILE: path.name, **{key: value for key, value in content.items() if key != FILE}}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PipelineError(
            f"{path} holds something else than text, numbers and lists ({error}).", remedy="Write plain values."
        ) from error
    return plain


def name_of(content: Mapping[str, Any]) -> str:
    """The file's name, for messages."""
    return str(content.get(FILE, "the pipeline"))


def entries(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every entry, those inside of containers included."""
    inner = content.get("transform", content)
    for one in inner.get("transforms", ()) if isinstance(inner, Mapping) else ():
        if isinstance(one, Mapping):
            yield one
            yield from entries(one)


def entry_name(entry: Mapping[str, Any]) -> str:
    """The name of an entry."""
    return str(entry.get(PICTURE_KEY, entry.get(VOLUME_KEY, "")))


def summary(content: Mapping[str, Any]) -> str:
    """A pipeline in a line: the file's name and the names of its entries."""
    inner = content.get("transform", content)
    names = [entry_name(one) for one in inner.get("transforms", ())] or [entry_name(inner)]
    return f"{name_of(content)}: {', '.join(names)}"


def symmetries(content: Mapping[str, Any] | None, *, usual: int) -> int:
    """How many mirrored and turned images of one thing training sees: with a pipeline what its names tell, else usual.

    1, 2 (mirrored), 4 (both mirrors) or 8 (turned, too).
    """
    if content is None:
        return usual
    names = {entry_name(entry) for entry in (*entries(content), content.get("transform", {}))}
    most = max((TURNS.get(name, 1) for name in names), default=1)
    return 4 if most == 2 and "VerticalFlip" in names else most


def recipe_text(operations: Sequence["Operation"], *, volumes: bool, command: str) -> str:
    """A modality's own recipe as a pipeline file, with what each operation does as comments.

    Args:
        operations: of the modality.
        volumes: a list for volumes, else a pipeline of albumentations.
        command: that printed it.
    """
    entries = [one.entry(VOLUME_KEY if volumes else PICTURE_KEY) for one in operations]
    if volumes:
        content: dict[str, Any] = {"transforms": entries}
    else:
        content = {"transform": {PICTURE_KEY: "Compose", "p": 1.0, "transforms": entries}}
    used = {}
    for one in operations:
        for each in (one, *getattr(one, "transforms", ())):
            used[each.file_name()] = (type(each).__doc__ or "").splitlines()[0]
    lines = [f"# The recipe of: {command}", "# It begins when the modality has cut out a view; docs/augmentation.md."]
    lines += [f"# {name}: {text}" for name, text in used.items()]
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    return "\n".join(lines) + "\n" + body


def unknown_name(where: str, name: str, known: list[str]) -> PipelineError:
    """The error for a name that is in no list, with the nearest one that is."""
    plain = {one.rpartition(".")[2].casefold(): one for one in known}
    close = get_close_matches(name, known, n=1) or [
        plain[one] for one in get_close_matches(name.rpartition(".")[2].casefold(), plain, n=1)
    ]
    return PipelineError(
        f"{where}: there is no such transform that a pipeline may name.",
        remedy=(f"Did you mean {close[0]}? " if close else "") + "docs/augmentation.md lists what there is.",
    )


def one_line(error: Exception) -> str:
    """An error of a library in one line, without its advertisement of web pages."""
    lines = [line.strip() for line in str(error).splitlines() if "For further information" not in line]
    return " ".join(lines).rstrip(".") or type(error).__name__
