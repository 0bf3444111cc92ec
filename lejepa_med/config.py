"""One tree of settings: these names are the command line's flags, the keys of config.yaml, and the Python arguments.

A value of None is chosen from the machine and the archive by `resolve`, printed, and saved. Only data.workers and
train.threads stay None: they belong to the machine and its load, not to the run.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator
from pydantic_settings import CliSuppress

from data_adapters.atomic import write_text
from data_adapters.exclusion import read_exclusion
from data_adapters.pipeline_file import content_of, summary
from lejepa_med.errors import ConfigError

LOCAL = "local.yaml"  # a run folder's paths; config.yaml beside it can be shown to others
PLACES = ("archive", "model.init", "data.catalog")  # settings that are always paths
OWN_CODE = (("model", "backbone"), ("objective", "method"))  # settings that may be the user's own ./file.py:Class
ORIGINS = "origins"  # key of config.yaml: names of settings by their origin; left out: built-in defaults
GIVEN, MACHINE, ARCHIVE = "given", "chosen for this machine", "chosen for this archive"
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Scale = Literal["laptop", "workstation", "cluster"]  # recipes: training/recipes.py
WEIGHTS, MODALITY, BUILT_IN = "from the weights", "modality's default", "built-in default"


class Section(BaseModel):
    """Frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Columns(Section):
    """Which columns of a table are its group and its label."""

    group_column: str | None = None
    """the table's column that holds what stays on one side of a split, such as patient; None: group"""
    label_column: str | None = None
    """the table's column that holds the label, such as age; None: label"""


class DataConfig(Columns):
    """The archive and how it is read."""

    group_column: CliSuppress[str | None] = Field(
        default=None, description=Columns.model_fields["group_column"].description
    )
    label_column: CliSuppress[str | None] = Field(
        default=None, description=Columns.model_fields["label_column"].description
    )
    catalog: CliSuppress[Path | None] = None
    """CSV or Parquet with a column path, and optionally group, label, split, mpp, ra, dec; or BIDS participants.tsv"""
    split: CliSuppress[str | None] = None
    """pretrain only on this split of the catalogue"""
    allow_leak: CliSuppress[bool] = False
    """pretrain although a group or an equal image of this split lies in another one, too"""
    exclude: CliSuppress[list[str] | None] = None
    """CSV with the ids of images to leave out, such as outliers.csv; the run keeps the ids"""
    verify: bool = True
    """decode every file once during scan, so that damage is found before training"""
    workers: int | None = Field(default=None, ge=0)
    """processes that read and augment; None: by the free cores, anew at each start; batches are the same for any"""
    bad_limit: float = Field(default=0.01, ge=0, le=1)
    """stop when more than this fraction of reads fails"""
    options: CliSuppress[dict[str, Any]] = {}
    """options of the modality, such as bands=g,r,z or mpp=0.5"""

    @field_validator("exclude", mode="before")
    @classmethod
    def _with_ids(cls, exclude: Any) -> Any:
        """Take the ids of a file into the settings, so that a run does not need the file again."""
        return read_exclusion(Path(exclude)) if isinstance(exclude, str | Path) else exclude

    @field_validator("options")
    @classmethod
    def _with_pipeline(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Take the content of a pipeline file into the settings, so that a run does not need the file again."""
        given = options.get("augment")
        if isinstance(given, str | Path) and Path(given).expanduser().is_file():
            return {**options, "augment": content_of(given)}
        return options  # a file that is gone: only `reopen` knows whether the run has its content

    def table(self) -> dict[str, Any]:
        """The catalogue and its columns, as `scan` takes them."""
        return self.model_dump(include={"catalog", *Columns.model_fields})


class ViewsConfig(Section):
    """The views of one sample; None: chosen by architecture and machine."""

    n_global: int | None = Field(default=None, ge=1)
    """global views: their mean is the target"""
    n_local: int | None = Field(default=None, ge=0)
    """local (small) views"""
    global_size: int | None = Field(default=None, ge=16)
    """side of a global view, pixels or voxels"""
    local_size: int | None = Field(default=None, ge=16)
    """side of a local view, pixels or voxels"""


class VectorConfig(Section):
    """How the vector of an image is formed, in evaluations and whenever the encoder is used; recorded in its folder.

    `lejepa-med vectors RUN` shows it, and changes it afterwards.
    """

    views: int | None = Field(default=None, ge=1, le=8)
    """fixed views that are averaged, so many passes an image: 1; 2, with the mirror image; 4, both mirrors; 8, and
    turned; None: what the modality gained from (galaxies and histology 8, MR slices 2, others
    1)"""
    size: int | None = Field(default=None, ge=16)
    """side of the images to embed, pixels or voxels; None: that of a global view"""
    layers: int | None = Field(default=None, ge=1, le=2)
    """1: the pooled output; 2: joined with that of the last stage or block but one; None: 1"""


SETTLED = frozenset({*ViewsConfig.model_fields, "embed_size"})
"""Options of the modality that follow from settings: those of `views`, and `vector.size`."""


class ModelConfig(Section):
    """Encoder and projector."""

    backbone: CliSuppress[str | None] = None
    """any timm architecture; for volumes monai:resnet18, monai:vit_small, monai:swinunetr or the like; your own as
    ./file.py:Class; None: that of init, else resnet18 or monai:resnet10 on a CPU, vit_small_patch16_224 or
    monai:vit_small on a GPU"""
    code_sha256: str | None = None
    """SHA-256 that the file of a backbone ./file.py:Class must have; None: recorded at the start of the run"""
    init: CliSuppress[Path | None] = None
    """weights to start from: a run or encoder folder, a folder of timm's, a .safetensors file, or timm:NAME, which is
    fetched from the hub; None: random ones"""
    freeze: int | None = Field(default=None, ge=0)
    """number of lowest layers that are not trained: the stem, then each stage of a CNN or block of a ViT; needs init;
    saves time and memory; None: half of a CNN whose weights are another's, where the recipe is laptop, else 0"""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """stochastic depth; None: .1 for ViT, 0 for CNN"""
    registers: int = Field(default=0, ge=0)
    """register tokens of a ViT (arXiv 2309.16588); LeJEPA does not need them"""
    conv_stem: bool = False
    """patches of a ViT (4, 8, 16 or 32 pixels) through 3 x 3 convolutions of stride 2 (arXiv 2106.14881)"""
    checkpointing: bool = False
    """forget activations and compute them again in the backward pass: less memory, about a third more time"""
    projector_hidden: int | None = Field(default=None, ge=8)
    """hidden width of the projector; None: 2048, or 1024 for up to 5,000 images"""
    projector_depth: int = Field(default=3, ge=1)
    """linear layers of the projector"""
    projector_dim: int = Field(default=64, ge=2)
    """output dimension, on which the objective acts"""


class ObjectiveConfig(Section):
    """The pretraining method, and its own settings as they were given.

    Each method has settings of its own, which its class in `lejepa_med.methods` declares and checks when a run starts.
    Reading a run folder runs no method's code.
    """

    model_config = ConfigDict(extra="allow")

    method: str = "lejepa"
    """lejepa, another method, an installed plug-in's, or your own as ./file.py:Class; each has settings of its own"""
    code_sha256: str | None = None
    """SHA-256 that the file of a method ./file.py:Class must have; None: recorded at the start of the run"""


class OptimConfig(Section):
    """AdamW, linear warm-up, cosine decay, clipping by norm."""

    lr: float | None = Field(default=None, gt=0)
    """peak learning rate; None: 2e-3 for CNN, 5e-4 for ViT; from existing weights 2e-4"""
    weight_decay: float | None = Field(default=None, ge=0)
    """not applied to norms and biases; None: 5e-4 for CNN, 5e-2 for ViT"""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """fraction of all steps"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """after the warm-up: cosine decay, or the peak to the end (the warm-up stays; --optim.warmup 0 removes it)"""
    final_lr: float = Field(default=1e-3, ge=0, le=1)
    """last learning rate of the cosine as a fraction of the peak"""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """factor of the learning rate from each layer to the one below it, for continued pretraining; 1: one rate"""
    average: float = Field(default=0.0, ge=0, lt=1)
    """decay of a moving average of the encoder's weights, saved as encoder-average and never in the loss; 0: none"""
    clip: float = Field(default=1.0, gt=0)
    """largest norm of the gradient"""


class TrainConfig(Section):
    """The run."""

    epochs: CliSuppress[int | None] = Field(default=None, ge=0)
    """passes over the archive; 0 writes a randomly initialised encoder; None: by minutes, or 100 (more for archives of
    less than three batches)"""
    minutes: CliSuppress[float | None] = Field(default=None, gt=0)
    """instead of epochs: train for so long, evaluations and report included, the scan not; the steps follow the pace"""
    batch_size: CliSuppress[int | None] = Field(default=None, ge=2)
    """samples of one step over all processes; None: 64 on a CPU, 256 on a GPU; of volumes 16 and 64; a small archive as
    a whole, with 8 views of each sample where it is at most half of that"""
    accumulate: int = Field(default=1, ge=1)
    """parts a batch is cut into to save memory; the objective then sees one part at a time: not the same method"""
    seed: CliSuppress[int] = Field(default=0, ge=0)
    """seed of weights, order, views and directions"""
    precision: Precision | None = None
    """the objective is always float32; None: bf16 where the device computes in it (on a CPU once a step agrees with
    float32), else fp16 on a GPU, else float32"""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads that compute; None: the usable cores, fewer while other processes need them"""
    compile: bool = False
    """torch.compile of the backbone; a minute at the start, and on a CPU a C++ compiler"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """under torchrun: copies of the model, or its parameters sharded over the processes (FSDP2)"""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """device kind"""
    log_every: int = Field(default=10, ge=1)
    """steps between two records of metrics.jsonl; left out, fewer in runs of less than 200 steps"""
    stop_early: int = Field(default=0, ge=0)
    """keep the encoder of the best label-free score (loss / lambda^0.4 on a fixed part of the archive, about once an
    epoch), and stop after so many evaluations in turn without a better one; 0: train to the end, keep the last"""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """time between two checkpoints; also one at the end and at Ctrl-C or SIGTERM"""


class MonitorConfig(Section):
    """Evaluations of the encoder during training, on a fixed sample of the archive, written to online.jsonl."""

    online: bool = True
    """evaluate at the end, and during the run as the following settings allow"""
    share: float = Field(default=0.03, ge=0, le=1)
    """largest part of the run's time for evaluations during it; they wait until this is kept"""
    every_epochs: float = Field(default=0.0, ge=0)
    """epochs between two evaluations, at least; with share they may come later"""
    every_minutes: float = Field(default=0.0, ge=0)
    """minutes between two evaluations, at least; with share they may come later"""
    sample: int = Field(default=1000, ge=16)
    """records evaluated, half of them as reference, divided by group; also those that the report embeds; left out,
    fewer where more than two views are averaged (8 views: 250)"""
    cache_mib: int = Field(default=512, ge=1)
    """memory for the prepared sample; a sample that needs more is made smaller"""


# Settings of a run whose open values were chosen. `training.resolve` makes them.


class ResolvedViews(ViewsConfig):
    """Views without open values."""

    n_global: int = Field(ge=1)
    n_local: int = Field(ge=0)
    global_size: int = Field(ge=16)
    local_size: int = Field(ge=16)


class ResolvedVector(VectorConfig):
    """The formation of vectors without open values."""

    views: int = Field(ge=1, le=8)
    size: int = Field(ge=16)
    layers: int = Field(ge=1, le=2)


class MachineModel(ModelConfig):
    """Encoder and projector, as far as the machine decides them."""

    backbone: str
    freeze: int = Field(ge=0)
    drop_path: float = Field(ge=0, lt=1)


class ResolvedModel(MachineModel):
    """Encoder and projector without open values."""

    projector_hidden: int = Field(ge=8)


class ResolvedOptim(OptimConfig):
    """The optimiser without open values."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class ResolvedTrain(TrainConfig):
    """The run with its batch and its arithmetic; its length is in epochs or in minutes."""

    batch_size: int = Field(ge=2)
    precision: Precision


class PretrainConfig(Section):
    """Everything that defines a pretraining run."""

    archive: Path
    """folder with the images"""
    out: Path
    """the run's folder"""
    modality: str
    """mri, mri3d, histology, galaxy, images, an installed plug-in, or ./file.py:Class"""
    recipe: Scale | None = None
    """values of settings that are left out: laptop, workstation or cluster; None: by the machine"""
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    vector: VectorConfig = VectorConfig()
    model: ModelConfig = ModelConfig()
    objective: SerializeAsAny[ObjectiveConfig] = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    monitor: MonitorConfig = MonitorConfig()


Config = TypeVar("Config", bound=PretrainConfig)


def save_config(
    config: PretrainConfig, file: Path, *, origins: Mapping[str, str] | None = None, only_local: bool = False
) -> None:
    """Write config.yaml, and the settings that name places of this machine into local.yaml beside it.

    `origins`: where the values came from, by the names of `flat`; kept for `origins_of`, without influence.
    """
    settings = config.model_dump(mode="json")
    local = {name: settings.pop(name) for name in ("archive", "out")}
    options = settings["data"]["options"]
    typed = [name for name, value in options.items() if "/" in str(value) and name != "augment"]
    places = {name: options.pop(name) for name in typed}
    local["model"] = {"init": settings["model"].pop("init")}
    if is_own(config.model.backbone or ""):
        local["model"]["backbone"] = config.model.backbone
        settings["model"]["backbone"] = short_name(config.model.backbone)
    if is_own(config.objective.method):
        local["objective"] = {"method": config.objective.method}
        settings["objective"]["method"] = short_name(config.objective.method)
    for section in ("model", "objective"):
        if settings[section]["code_sha256"] is None:
            del settings[section]["code_sha256"]  # of timm's, MONAI's and installed methods, which have none
    local["data"] = {"catalog": settings["data"].pop("catalog"), "options": places}
    if origins is not None:
        kinds = (GIVEN, MACHINE, ARCHIVE, WEIGHTS)
        settings[ORIGINS] = {kind: [name for name, of in origins.items() if of == kind] for kind in kinds}
    # config.yaml last: where it stands, the run can be resumed
    for target, tree in ((file.with_name(LOCAL), local), *(() if only_local else ((file, settings),))):
        write_text(target, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def load_config(file: Path) -> PretrainConfig:
    """Read config.yaml, and where it leaves them out, the places from local.yaml beside it.

    Raises:
        ConfigError: all issues of the files at once.
    """
    try:
        tree = read_settings(file)
        if isinstance(tree, dict):
            tree.pop(ORIGINS, None)
        return PretrainConfig.model_validate(tree)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}.", remedy="Give the folder of a run of: lejepa-med pretrain"
        ) from error
    except ValidationError as error:
        raise ConfigError(
            f"{file} has wrong settings: {issues(error)}.", remedy=f"Correct these settings in {file}."
        ) from error


def read_settings(file: Path) -> Any:
    """The tree of config.yaml and local.yaml as it stands there, of whatever release; OSError or YAMLError."""
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    beside = file.with_name(LOCAL)
    local = yaml.safe_load(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    tree = _merged(local, settings)
    for section, name in OWN_CODE:
        place, known = (one.get(section) if isinstance(one, dict) else None for one in (local, tree))
        if isinstance(place, dict) and isinstance(known, dict) and place.get(name):
            if short_name(str(place[name])) == known.get(name):
                known[name] = place[name]  # config.yaml has the file's name, local.yaml its folder
    return tree


def origins_of(tree: Mapping[str, Any]) -> dict[str, str] | None:
    """Where each setting of a tree of `read_settings` came from; None where an earlier release wrote it."""
    kinds = tree.get(ORIGINS)
    if not isinstance(kinds, dict):
        return None
    said = {str(name): str(kind) for kind, names in kinds.items() for name in names or ()}
    return {
        name: said.get(name, default_origin(name))
        for name in {**flat(tree), **said}
        if not name.startswith(f"{ORIGINS}.")
    }


def default_origin(name: str) -> str:
    """Where a setting came from that no list of origins names."""
    return MODALITY if name.startswith(("data.options.", "vector.")) else BUILT_IN


def is_own(name: str) -> bool:
    """Whether a backbone or method is the user's own, `file.py:Class`."""
    return name.rpartition(":")[0].endswith(".py")


def short_name(name: str | None) -> str:
    """`file.py:Class` without its folder, which is a place on this machine; other names as they are."""
    return Path(str(name)).name if is_own(name or "") else str(name)


def with_own_code(config: Config, place: Callable[[str, str], str | None]) -> Config:
    """Return the settings with other places of the user's own files.

    Args:
        config: settings.
        place: from a section and the `./file.py:Class` in it to the new place; None leaves it.
    """
    for section, name in OWN_CODE:
        there = getattr(config, section)
        given = getattr(there, name) or ""
        new = place(section, given) if is_own(given) else None
        if new is not None:
            config = config.model_copy(update={section: there.model_copy(update={name: new})})
    return config


def same_name(one: str | None, other: str | None) -> bool:
    """Whether two backbones or methods have one name; of the user's own the class counts, wherever its file lies."""
    if is_own(one or "") and is_own(other or ""):
        return str(one).rpartition(":")[2] == str(other).rpartition(":")[2]
    return one == other


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as one level: `optim.lr` and the like; a pipeline is one value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, dict) and name != "augment"
        found |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def setting_text(name: str, value: Any) -> str:
    """A value as it is shown: short, nothing as a dash, and no place on this machine but `out` (docs/privacy.md)."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if name.endswith("augment") and isinstance(value, dict):
        return summary(value)
    if isinstance(value, list | tuple):
        return ", ".join(setting_text(name, part) for part in value) or "none"
    text = str(value)
    if name == "model.init" and text.startswith("timm:"):  # a name of the hub
        return text
    if name in ("model.backbone", "objective.method"):
        return short_name(text)
    if name.endswith(".code_sha256"):
        return f"{text[:16]}..."
    typed = "/" in text and (name.startswith("data.options.") or ".py" in text or text[0] in "./~")
    return "(a place, not shown)" if name in PLACES or (typed and name != "out") else text


def _merged(local: Any, settings: Any) -> Any:
    """Both trees in one; where both have a value, that of `settings`."""
    if not (isinstance(local, dict) and isinstance(settings, dict)):
        return settings
    return {**local, **{key: _merged(local.get(key), value) for key, value in settings.items()}}


def issues(error: ValidationError) -> str:
    """All issues of a validation in one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


MAY_CHANGE = ("data.workers", "train.threads", "train.accelerator", "train.strategy", "train.checkpoint_minutes")


def continued(given: PretrainConfig, saved: Config) -> Config:
    """The settings of a saved run; of those in MAY_CHANGE, what was given explicitly."""
    for name in MAY_CHANGE:
        section, field = name.split(".")
        wanted = getattr(given, section)
        if field in wanted.model_fields_set and getattr(wanted, field) is not None:
            changed = getattr(saved, section).model_copy(update={field: getattr(wanted, field)})
            saved = saved.model_copy(update={section: changed})
    chosen = {"model": given.model.backbone or "", "objective": given.objective.method}
    # the file may lie elsewhere now; its content may not differ
    return with_own_code(saved, lambda section, _: chosen[section] if is_own(chosen[section]) else None)


def differences(given: PretrainConfig, saved: PretrainConfig) -> list[str]:
    """Settings that were given explicitly, may not change, and differ from a saved run, as 'name: given, saved'."""

    def walk(one: BaseModel, other: BaseModel, prefix: str) -> list[str]:
        found: list[str] = []
        for name in sorted(one.model_fields_set):
            a, b = getattr(one, name), getattr(other, name, None)
            if isinstance(a, BaseModel) and isinstance(b, BaseModel):
                found += walk(a, b, f"{prefix}{name}.")
            elif isinstance(a, Path) and isinstance(b, Path) and a.resolve() == b.resolve():
                continue  # one place, once relative and once absolute
            elif name in ("backbone", "method") and same_name(a, b):
                continue
            elif (
                name == "options" and isinstance(path := a.get("augment"), str) and a == {**(b or {}), "augment": path}
            ):
                continue  # the pipeline's file is gone; the run has its content
            elif f"{prefix}{name}" not in MAY_CHANGE and a is not None and a != b and str(a) != str(b):
                found.append(f"{prefix}{name}: given {a}, the run has {b}")
        return found

    return walk(given, saved, "")
