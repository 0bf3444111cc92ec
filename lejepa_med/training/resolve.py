"""Settings left open become numbers: from the machine before the scan, from the archive after it.

`--recipe` names the values of open settings by the scale of the machine. Left out, it is chosen: laptop on a CPU,
workstation on one GPU, cluster on several. The choice is printed and saved, and every value can still be given by
itself. docs/training.md has the measurement behind each value, or says that there is none.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape

import data_adapters
from data_adapters.base import SMALL_SIZE, Adapter, BaseAdapter
from data_adapters.manifest import Manifest
from data_adapters.registry import load_class
from data_adapters.scan import Scan
from lejepa_med.archive import of_split, refusal
from lejepa_med.config import (
    ARCHIVE,
    BUILT_IN,
    GIVEN,
    MACHINE,
    MODALITY,
    SETTLED,
    WEIGHTS,
    MachineModel,
    ModelConfig,
    PretrainConfig,
    ResolvedModel,
    ResolvedOptim,
    ResolvedTrain,
    ResolvedVector,
    ResolvedViews,
    Scale,
    VectorConfig,
    flat,
    is_own,
    short_name,
)
from lejepa_med.data.dataset import too_few
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.methods.registry import read, refuse
from lejepa_med.models.architectures import check_name, check_vit_options, inner_layers_of, is_convolutional, is_monai
from lejepa_med.models.formation import Formation, check_formation, most_views
from lejepa_med.models.own import Code, load_code
from lejepa_med.models.source import open_source
from lejepa_med.models.start import half_of_layers
from lejepa_med.training.device import best_precision
from lejepa_med.training.settings import MachineConfig, RunConfig, settled


class Views(NamedTuple):
    """Views of one sample; without a size, the modality's own for small machines (`BaseAdapter.small_size`)."""

    n_global: int
    n_local: int
    global_size: int | None = None


class Recipe(NamedTuple):
    """Values of one scale for images or for volumes.

    Attributes:
        backbone: where neither an architecture nor weights are given.
        batch: samples of a step over all processes.
        slices: random directions of SIGReg in a step.
        cnn: views of a convolutional network.
        vit: views of a transformer.
        freezes_half: whether the lower half of a CNN that starts from the weights of others is not trained.
    """

    backbone: str
    batch: int
    slices: int
    cnn: Views
    vit: Views
    freezes_half: bool = False


SAME_SIZE = Views(4, 0, 128)  # as in the paper's in-domain runs
MULTI_CROP = Views(2, 6, 224)
CUBES = Views(2, 6, 96)  # 3DINO's sizes

# Frozen halves: benchmarks/results/warm-start-trials.md, for one CNN on three sets; transformers were not tried.
# By scale and by dimensions (2, 3). The laptop's small batch: a short run has few steps (one pair of runs, batch and
# lambda changed together: benchmarks/results/galaxies-trials.md). The cluster's batch is the paper's best (Table 1c);
# its larger backbones have not been tried here.
RECIPES: dict[tuple[Scale, int], Recipe] = {
    ("laptop", 2): Recipe("resnet18", 64, 256, Views(4, 0), Views(2, 2), freezes_half=True),
    ("laptop", 3): Recipe("monai:resnet10", 16, 256, Views(4, 0, 48), Views(2, 2, 48)),
    ("workstation", 2): Recipe("vit_small_patch16_224", 256, 1024, SAME_SIZE, MULTI_CROP),
    ("workstation", 3): Recipe("monai:vit_small", 64, 1024, CUBES, CUBES),
    ("cluster", 2): Recipe("vit_base_patch16_224", 512, 1024, SAME_SIZE, MULTI_CROP),
    ("cluster", 3): Recipe("monai:vit", 128, 1024, CUBES, CUBES),
}


def scale_of(device: str) -> Scale:
    """Return the scale where nobody chose one: by the device, 'cpu' or 'cuda', and the processes of the run."""
    if device == "cpu":
        return "laptop"
    return "cluster" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "workstation"


EPOCHS = 100
EVALUATION_PASSES = 2000  # of one evaluation: of 8 views, 1,000 records would take half of a run of a few minutes
# Peak learning rates: from random weights (ViT, CNN), and from existing ones. EfficientNet-Lite0 after 16 epochs of
# histology ends 3 points higher with 10 labels, 1 with all of them, at 2e-4 than at 5e-4; 1e-4 with layer decay ended
# below the frozen network (benchmarks/results/warm-start-trials.md). No ViT was measured.
RATES, WARM_RATE = (5e-4, 2e-3), 2e-4
# settings that follow existing weights where the user leaves them open
OF_WEIGHTS = (
    "model.backbone",
    "model.registers",
    "model.conv_stem",
    "model.freeze",
    "optim.lr",
    "data.options.mean",
    "data.options.std",
)
# Our own choices for archives that give less than one usual batch (not published):
MANY_VIEWS = 8  # of each sample, where the batch is at most half the usual one: a step then compares as many images
FEWEST_RECORDS = 20  # of a short run, so that its curves can be judged
FEWEST_STEPS = 300  # of a run whose epochs nobody chose; 100 epochs of one step would end in the warm-up's shadow


def create_adapter(config: PretrainConfig) -> Adapter:
    """The adapter that a run with these resolved settings reads the archive with, before it is fitted.

    Raises:
        UserError: an unknown modality, or options that it does not accept.
    """
    if "embed_size" in config.data.options:
        raise ConfigError(
            "The size of the images to embed is no option of the modality.",
            remedy=f"Give --vector.size {config.data.options['embed_size']}.",
        )
    options = {**config.views.model_dump(), **config.data.options}
    if config.vector.size not in (None, options["global_size"]):
        options["embed_size"] = config.vector.size
    return data_adapters.create(config.modality, **options)


def fitted_adapter(config: PretrainConfig, manifest: Manifest) -> Adapter:
    """The adapter of resolved settings, with what it learns from the archive and from the weights of `model.init`.

    Raises:
        UserError: an archive that the modality refuses, or weights that are not there.
    """
    before = create_adapter(config)
    adapter = before.fit(manifest.records())
    if isinstance(before, BaseAdapter) and isinstance(adapter, BaseAdapter):
        size, rng = config.views.local_size or SMALL_SIZE, np.random.default_rng(0)
        if before.view_example(size, rng) is None:  # else `resolve_machine` has checked it
            adapter.check_pipeline()
    if config.model.init is None or not isinstance(adapter, BaseAdapter):
        return adapter
    source = open_source(config.model.init, backbone=config.model.backbone)
    return adapter.normalised_as(source.mean, source.std) if source.mean else adapter


@dataclass(frozen=True)
class Fitted:
    """What a run trains with: settings without open values, the rows, and the adapter that has learnt from them.

    `course` says it in a line, with what a small archive has changed.
    """

    config: RunConfig
    manifest: Manifest
    adapter: Adapter
    course: str


def fit_to_archive(config: MachineConfig, manifest: Manifest, *, given: PretrainConfig, processes: int) -> Fitted:
    """Settle what the archive decides: the one way from a scan to what is trained on, and to what `inspect` shows.

    Args:
        config: of `resolve_machine`.
        manifest: all rows of the scan.
        given: what the user chose, and nothing else.
        processes: that share a batch.

    Raises:
        UserError: no row of the split, a leak, a batch that does not fit, or an archive that the modality refuses.
    """
    manifest = of_split(manifest, config.data)
    samples = sum(manifest.column("samples"))
    sampled, chosen = resolve_samples(config, given=given, samples=samples, processes=processes)
    adapter = fitted_adapter(sampled, manifest)
    run = resolve_archive(sampled, items=len(manifest))
    if "log_every" not in given.train.model_fields_set and run.train.epochs:
        steps = run.train.epochs * (samples // run.train.batch_size)
        often = max(1, min(run.train.log_every, steps // FEWEST_RECORDS))
        run = run.model_copy(update={"train": run.train.model_copy(update={"log_every": often})})
    return Fitted(
        config=run,
        manifest=dataclasses.replace(manifest, adapter=adapter.describe()),
        adapter=adapter,
        course=course(run, samples=samples, chosen=chosen),
    )


def origins(final: RunConfig, *, given: PretrainConfig, machine: MachineConfig, fitted: Fitted) -> dict[str, str]:
    """Where each setting came from, by the names of `flat`, with those of the modality as `data.options.NAME`.

    Args:
        final: what is trained with.
        given: what the user chose.
        machine: of `resolve_machine`.
        fitted: of `fit_to_archive`; where `final` differs from it, the machine's arithmetic was the reason.
    """
    typed = flat(given.model_dump(mode="json", exclude_unset=True))
    opened = given.model_copy(update={"objective": read(given.objective)[0]})  # with the method's defaults
    stages = [flat(config.model_dump(mode="json")) for config in (opened, machine, fitted.config, final)]
    if "objective.slices" not in typed:
        stages[0]["objective.slices"] = None  # the recipe chooses them
    found = {}
    for name, value in stages[-1].items():
        start, here, archive, last = (stage.get(name) for stage in stages)
        if last != archive or (archive == here != start):
            found[name] = MACHINE
        elif archive != here:
            found[name] = ARCHIVE
        else:
            found[name] = GIVEN if typed.get(name) is not None and value is not None else BUILT_IN
    options, before = (adapter.describe()["options"] for adapter in (fitted.adapter, create_adapter(machine)))
    own = options.keys() - SETTLED - final.data.options.keys()
    for name in sorted(own):
        found[f"data.options.{name}"] = ARCHIVE if options[name] != before.get(name) else MODALITY
    for name in VectorConfig.model_fields:
        if found[f"vector.{name}"] == MACHINE:
            found[f"vector.{name}"] = MODALITY
    if final.model.init is not None:
        followed = [name for name in OF_WEIGHTS if found.get(name) in (MACHINE, ARCHIVE)]
        found |= dict.fromkeys(followed, WEIGHTS)
    return found


def resolve_machine(config: PretrainConfig, *, device: str) -> MachineConfig:
    """Choose backbone, views, precision and optimiser for 'cpu' or 'cuda', by the recipe of `recipes`.

    The method has the last word on its number of views and the shape of its projector.

    Raises:
        UserError: an unknown modality, backbone or method, a backbone of other dimensions than the modality, or an
            objective whose settings do not go together.
    """
    adapter = load_class(config.modality)
    dims = getattr(adapter, "dims", 2)
    if config.model.backbone is not None:
        check_name(config.model.backbone, dims=dims)  # now, and not after a scan of hours
    config = _following_weights(config, dims=dims)
    scale = config.recipe or scale_of(device)
    recipe = RECIPES[scale, dims]
    backbone = config.model.backbone or recipe.backbone
    check_vit_options(backbone, registers=config.model.registers, conv_stem=config.model.conv_stem)
    code = _code(config, backbone)
    cnn = is_convolutional(backbone) if code is None else code.convolutional
    foreign = _foreign(config.model)
    method, found = read(config.objective, slices=recipe.slices)
    views = _views(config, recipe, adapter, cnn=cnn, foreign=foreign, numbers=method.views)
    refuse([*found, *method.issues(backbone=backbone, views=views, conv_stem=config.model.conv_stem)])
    freeze = config.model.freeze
    if freeze is None:
        freeze = half_of_layers(backbone) if foreign and recipe.freezes_half and cnn else 0
    drop_path = config.model.drop_path
    if drop_path is None:
        drop_path = 0.0 if cnn or code is not None else 0.1
    lr, weight_decay = config.optim.lr, config.optim.weight_decay
    if lr is None:
        lr = RATES[cnn] if config.model.init is None else WARM_RATE
    head = dict(zip(("projector_depth", "projector_dim"), method.head or (), strict=False))
    model: dict[str, Any] = {name: size for name, size in head.items() if name not in config.model.model_fields_set}
    model |= {"backbone": backbone, "freeze": freeze, "drop_path": drop_path, "code_sha256": code and code.sha256}
    train = {
        "accelerator": device,
        "precision": config.train.precision or best_precision(device),
        "batch_size": config.train.batch_size or recipe.batch,
    }
    config = config.model_copy(update={"views": views})
    vector, monitor = _vector(config, backbone=backbone), config.monitor
    if "sample" not in monitor.model_fields_set:
        monitor = monitor.model_copy(update={"sample": min(monitor.sample, EVALUATION_PASSES // vector.views)})
    sections: dict[str, Any] = {name: getattr(config, name) for name in PretrainConfig.model_fields}
    return MachineConfig(
        **sections
        | {
            "recipe": scale,
            "vector": vector,
            "monitor": monitor,
            "model": MachineModel(**config.model.model_dump() | model),
            "objective": method,
            "optim": ResolvedOptim(
                **config.optim.model_dump()
                | {"lr": lr, "weight_decay": (5e-4 if cnn else 5e-2) if weight_decay is None else weight_decay}
            ),
            "train": ResolvedTrain(**config.train.model_dump() | train),
        }
    )


def _views(
    config: PretrainConfig,
    recipe: Recipe,
    adapter: type[BaseAdapter],
    *,
    cnn: bool,
    foreign: bool,
    numbers: tuple[int, int] | None,
) -> ResolvedViews:
    """The views: of the recipe, where the method wants other `numbers` these, and what was given before all."""
    views = (recipe.cnn if cnn else recipe.vit)._asdict()
    if views["global_size"] is None:
        views["global_size"] = getattr(adapter, "small_size", SMALL_SIZE)
        warm = getattr(adapter, "warm_views", None)
        if warm is not None and cnn and foreign and config.views.global_size is None:
            views["n_global"], views["global_size"] = warm
    if numbers is not None:
        views["n_global"], views["n_local"] = numbers
    views |= {name: value for name, value in config.views.model_dump().items() if value is not None}
    views.setdefault("local_size", _local_size(views["global_size"], volumes=getattr(adapter, "dims", 2) == 3))
    return ResolvedViews(**views)


def _foreign(model: ModelConfig) -> bool:
    """Return whether training starts from weights of another project, and not from an encoder of ours."""
    if model.init is None or is_own(model.backbone or ""):
        return False
    return not open_source(model.init, backbone=model.backbone).ours


def _vector(config: PretrainConfig, *, backbone: str) -> ResolvedVector:
    """The formation of vectors, with the modality's own where nobody chose it.

    Raises:
        UserError: one that the modality or the architecture does not allow.
    """
    given, adapter = config.vector, create_adapter(config)
    if isinstance(adapter, BaseAdapter):
        adapter.check_pipeline()
    spec = adapter.spec
    views, layers = getattr(adapter, "usual_views", 1), getattr(adapter, "usual_layers", 1)
    if layers > 1 and inner_layers_of(backbone) == "none":
        layers = 1
    formation = Formation(
        size=given.size or spec.global_size,
        views=given.views or min(views, most_views(adapter)),
        layers=given.layers or layers,
    )
    check_formation(formation, adapter)
    if formation.layers > 1 and inner_layers_of(backbone) == "none":
        raise ConfigError(
            f"'{backbone}' gives its last layer only, so two layers cannot be joined.",
            remedy="Leave out --vector.layers, or use an architecture of timm.",
        )
    return ResolvedVector(**dataclasses.asdict(formation))


def _code(config: PretrainConfig, backbone: str) -> Code | None:
    """The file of the user's own backbone, now and not after a scan of hours; None where it is timm's or MONAI's.

    Raises:
        ConfigError: a file that cannot be used, or a hash without one.
    """
    if is_own(backbone):
        return load_code(backbone, sha256=config.model.code_sha256)
    if config.model.code_sha256 is not None:
        raise ConfigError(
            f"--model.code-sha256 belongs to a backbone of your own, and {backbone} is none.",
            remedy="Leave it out, or give --backbone ./file.py:Class.",
        )
    return None


def _following_weights(config: PretrainConfig, *, dims: int) -> PretrainConfig:
    """The settings with the architecture of the weights in `model.init`, as far as nobody chose another one.

    Raises:
        UserError: no such weights, or weights of another architecture or of other dimensions than were chosen.
    """
    model = config.model
    if model.init is None and model.freeze:
        raise ConfigError(
            "--model.freeze leaves layers untrained, and without --init they would stay random.",
            remedy="Add --init with the weights to start from, or leave out --model.freeze.",
        )
    if model.init is None:
        return config
    source = open_source(model.init, backbone=model.backbone)
    unsaid = is_own(source.backbone) and not source.ours  # a file of weights does not say it of the user's own
    if not unsaid and (source.volumes or is_monai(source.backbone)) != (dims == 3):
        theirs, wanted = ("2-D images", "volumes") if dims == 3 else ("volumes", "2-D images")
        raise ConfigError(
            f"The weights in {model.init} are those of a {short_name(source.backbone)}, which is for {theirs}; the "
            f"modality '{config.modality}' gives {wanted}.",
            remedy=f"Leave out --init, or use a modality that gives {theirs}.",
        )
    same: dict[str, Any] = {"backbone": model.backbone or source.backbone}
    for name, argument in (("registers", "reg_tokens"), ("conv_stem", "conv_stem")):
        if name not in model.model_fields_set:
            same[name] = type(getattr(model, name))(source.arguments.get(argument) or 0)
    return config.model_copy(update={"model": model.model_copy(update=same)})


def _local_size(global_size: int, *, volumes: bool) -> int:
    """The multiple of 16 next to 3/7 of the global side: 96 for 224, as in the paper's multi-crop.

    Of volumes next to its half: 48 for 96, as 3DINO.
    """
    return max(16, round(global_size * (1 / 2 if volumes else 3 / 7) / 16) * 16)


def outlook(config: MachineConfig, found: Scan, *, given: PretrainConfig) -> str:
    """What `pretrain` with these settings would do here with what a scan found, in a line; or why it would not start.

    Args:
        config: of `resolve_machine`.
        found: the scan.
        given: what the user chose.
    """
    samples = found.figures(()).parts[config.data.split] if config.data.split else found.figures(()).samples
    try:
        if (error := refusal(create_adapter(config), found, split=config.data.split)) is not None:
            raise error
        check_batch(given, processes=1)
        config, chosen = resolve_samples(config, given=given, samples=samples, processes=1)
    except UserError as error:
        return f"[bold red]pretrain will refuse this:[/] {escape(str(error))}"
    return f"pretrain will train {course(config, samples=samples, chosen=chosen)}"


def course(config: MachineConfig, *, samples: int, chosen: str) -> str:
    """What is trained, on which views and batches, and what a small archive has changed of that."""
    views, batch = config.views, config.train.batch_size
    seen = f"{views.n_global} global view{'' if views.n_global == 1 else 's'} of {views.global_size}"
    seen += f" and {views.n_local} local ones of {views.local_size}" if views.n_local else ""
    unit = "voxels" if getattr(load_class(config.modality), "dims", 2) == 3 else "px"
    steps = _steps(samples // batch)
    weights = ""
    if config.model.init is not None:
        source = open_source(config.model.init, backbone=config.model.backbone)
        weights = f" from {escape(source.name)} at learning rate {config.optim.lr:g}"
    name = escape(short_name(config.model.backbone))
    text = f"{name}{weights} with {seen} {unit}, {steps} an epoch of {batch} samples each"
    text += f" (recipe {config.recipe})" if config.recipe else ""
    return f"{text}: {chosen}" if chosen else text


def check_batch(config: PretrainConfig, *, processes: int) -> None:
    """Refuse a chosen batch that does not divide over its parts and processes; called before the archive is read.

    Raises:
        ConfigError: with the next batch that does.
    """
    batch, multiple = config.train.batch_size or 0, processes * config.train.accumulate
    if batch % multiple:
        raise ConfigError(
            f"A batch of {batch} does not divide into {config.train.accumulate} parts on {processes} processes.",
            remedy=f"Set --batch-size {max(multiple, batch - batch % multiple)}, or another multiple of {multiple}.",
        )


def resolve_samples(
    config: MachineConfig, *, given: PretrainConfig, samples: int, processes: int
) -> tuple[MachineConfig, str]:
    """Fit batch, views and epochs to an archive that gives less than a usual batch, as far as nobody chose them.

    The batch is no larger than the archive. Where it is at most half the usual one, LeJEPA takes 8 views of each
    sample, as may another method that says so (`many_views`). Where an epoch has one or two steps, there are more
    epochs, so that the run has `FEWEST_STEPS`.

    Args:
        config: with a batch size and numbers of views.
        given: what the user chose.
        samples: that the archive gives in an epoch.
        processes: that share a batch.

    Returns:
        The settings, and a line that says what was chosen and why; empty where nothing was.

    Raises:
        ConfigError: the batch that was given, or the smallest possible one, is larger than the archive.
    """
    chosen, multiple = given.train.batch_size, processes * config.train.accumulate
    usual = config.train.batch_size if chosen else max(multiple, config.train.batch_size // multiple * multiple)
    batch = chosen or min(usual, samples - samples % multiple)
    if batch > samples or batch < 2:
        raise too_few(samples, batch_size=chosen or max(2, multiple), multiple=multiple)
    said = [] if batch == usual else [f"a batch of {batch}, since the archive gives {samples} samples an epoch"]
    views, epochs = config.views, config.train.epochs
    if 2 * batch <= usual and config.objective.many_views and not _views_given(given):
        added = MANY_VIEWS - views.n_global - views.n_local
        if added > 0:
            name = "n_local" if views.n_local else "n_global"
            views = views.model_copy(update={name: getattr(views, name) + added})
            said.append(f"{MANY_VIEWS} views of each (usually {MANY_VIEWS - added})")
    if epochs is None and config.train.minutes is None:
        epochs = max(EPOCHS, math.ceil(FEWEST_STEPS / (samples // batch)))
        if epochs > EPOCHS:
            said.append(f"{epochs} epochs (usually {EPOCHS}), which is {epochs * (samples // batch)} steps")
    train = config.train.model_copy(update={"batch_size": batch, "epochs": epochs})
    return config.model_copy(update={"views": views, "train": train}), ", ".join(said)


def _views_given(given: PretrainConfig) -> bool:
    """Whether the user chose a number of views, as a setting or as an option of the modality."""
    names = ("n_global", "n_local")
    return any(getattr(given.views, name) is not None or name in given.data.options for name in names)


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def resolve_archive(config: MachineConfig, *, items: int) -> RunConfig:
    """Choose lambda, projector width and epochs for `items` records."""
    epochs = config.train.epochs
    if epochs is None and config.train.minutes is None:
        epochs = EPOCHS
    hidden = config.model.projector_hidden
    if hidden is None:
        hidden = 1024 if items <= 5000 else 2048
    sections: dict[str, Any] = {name: getattr(config, name) for name in PretrainConfig.model_fields}
    return RunConfig(
        **sections
        | {
            "model": ResolvedModel(**config.model.model_dump() | {"projector_hidden": hidden}),
            "objective": settled(config, items=items),
            "train": config.train.model_copy(update={"epochs": epochs}),
        }
    )


def warnings(config: RunConfig, *, samples: int) -> list[str]:
    """What a resolved run on `samples` an epoch should know about its statistics.

    SIGReg's gradient grows with the samples that it sees at once, so a small batch makes it noisy and weak. 64 is our
    own limit: the paper finds no loss down to 128 (Table 1c), and its bias argument is for 16.
    """
    batch, count = config.train.batch_size, config.train.accumulate
    lines = []
    if count > 1:
        lines.append(
            f"--train.accumulate {count}: the objective compares {batch // count} samples at a time, not {batch}. "
            "Memory is saved, but it is not training with the larger batch; --model.checkpointing saves memory and is."
        )
    if batch // count < 64 and samples < min(64, 2 * batch):
        lines.append(
            f"The archive gives {samples} samples an epoch. A run on so few shows that everything works; an encoder "
            "that is worth using needs some hundreds."
        )
    elif batch // count < 64 and getattr(load_class(config.modality), "dims", 2) == 2:
        lines.append(
            f"The objective sees {batch // count} samples at a time: below 64 its directions are noisy. Use a larger "
            "--batch-size, or smaller views, where memory permits."
        )
    views = config.views.n_global + config.views.n_local
    cautions = config.objective.cautions(views=views, seen=batch // count, projector_dim=config.model.projector_dim)
    return [*lines, *cautions]
