"""Settings left open become numbers: from the machine before the scan, from the archive after it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.markup import escape

import data_adapters
from data_adapters.base import SMALL_SIZE, Adapter, BaseAdapter
from data_adapters.manifest import Manifest
from data_adapters.registry import load_class
from data_adapters.scan import Scan
from lejepa_med.config import (
    ARCHIVE,
    BUILT_IN,
    GIVEN,
    MACHINE,
    MODALITY,
    SETTLED,
    WEIGHTS,
    ModelConfig,
    PretrainConfig,
    VectorConfig,
    flat,
    is_own,
    short_name,
)
from lejepa_med.data.sampler import too_few
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.methods.settings import check_objective, head_of, weight_of
from lejepa_med.models.architectures import (
    check_name,
    check_vit_options,
    inner_layers_of,
    is_convolutional,
    is_monai,
)
from lejepa_med.models.formation import Formation, check_formation, most_views
from lejepa_med.models.own import Code, load_code
from lejepa_med.models.source import open_source
from lejepa_med.models.start import half_of_layers
from lejepa_med.training.archive import of_split, refusal
from lejepa_med.training.precision import best_precision
from lejepa_med.training.recipes import RECIPES, scale_of

EPOCHS = 100
EVALUATION_PASSES = 2000  # of one evaluation: of 8 views, 1,000 records would take half of a run of a few minutes
# Peak learning rates (ViT, CNN). From existing weights: 3e-4 to 5e-4 at full depth ended above the same network frozen,
# 1e-4 with layer decay below it (EfficientNet-Lite0 on three archives); for a ViT the lower one, which is not measured.
RATES, WARM_RATES = (5e-4, 2e-3), (3e-4, 5e-4)
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


def device_of(config: PretrainConfig) -> str:
    """Where the run would train here: 'cpu' or 'cuda'.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    wanted = config.train.accelerator
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "PyTorch sees no CUDA device.",
            remedy="Use --train.accelerator cpu, or see what lejepa-med doctor says about the GPU.",
        )
    return wanted


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

    config: PretrainConfig
    manifest: Manifest
    adapter: Adapter
    course: str


def fit_to_archive(config: PretrainConfig, manifest: Manifest, *, given: PretrainConfig, processes: int) -> Fitted:
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
    config, chosen = resolve_samples(config, given=given, samples=samples, processes=processes)
    adapter = fitted_adapter(config, manifest)
    config = resolve_archive(config, items=len(manifest))
    if "log_every" not in given.train.model_fields_set and config.train.epochs:
        steps = config.train.epochs * (samples // (config.train.batch_size or 1))
        often = max(1, min(config.train.log_every, steps // FEWEST_RECORDS))
        config = config.model_copy(update={"train": config.train.model_copy(update={"log_every": often})})
    return Fitted(
        config=config,
        manifest=dataclasses.replace(manifest, adapter=adapter.describe()),
        adapter=adapter,
        course=course(config, samples=samples, chosen=chosen),
    )


def origins(final: PretrainConfig, *, given: PretrainConfig, machine: PretrainConfig, fitted: Fitted) -> dict[str, str]:
    """Where each setting came from, by the names of `flat`, with those of the modality as `data.options.NAME`.

    Args:
        final: what is trained with.
        given: what the user chose.
        machine: of `resolve_machine`.
        fitted: of `fit_to_archive`; where `final` differs from it, the machine's arithmetic was the reason.
    """
    typed = flat(given.model_dump(mode="json", exclude_unset=True))
    stages = [flat(config.model_dump(mode="json")) for config in (given, machine, fitted.config, final)]
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


def resolve_machine(config: PretrainConfig, *, device: str) -> PretrainConfig:
    """Choose backbone, views, precision and optimiser for 'cpu' or 'cuda', by the recipe of `recipes`.

    The masked method has one global view. Baselines have their paper's depth and width of the projector.

    Raises:
        UserError: an unknown modality or backbone, a backbone of other dimensions than the modality, or an objective
            whose settings do not go together.
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
    views = (recipe.cnn if cnn else recipe.vit)._asdict()
    if views["global_size"] is None:
        views["global_size"] = getattr(adapter, "small_size", SMALL_SIZE)
        warm = getattr(adapter, "warm_views", None)
        if warm is not None and cnn and foreign and config.views.global_size is None:
            views["n_global"], views["global_size"] = warm
    if config.objective.method == "masked":
        views |= {"n_global": 1, "n_local": 0}
    views |= {name: value for name, value in config.views.model_dump().items() if value is not None}
    views.setdefault("local_size", _local_size(views["global_size"], volumes=dims == 3))
    drop_path = 0.0 if cnn or code is not None else 0.1
    chosen_model: dict[str, Any] = {"backbone": backbone, "drop_path": _first(config.model.drop_path, drop_path)}
    chosen_model |= {"code_sha256": code and code.sha256, "freeze": config.model.freeze}
    if config.model.freeze is None:
        chosen_model["freeze"] = half_of_layers(backbone) if foreign and recipe.freezes_half and cnn else 0
    chosen_optim = {
        "lr": _first(config.optim.lr, (RATES if config.model.init is None else WARM_RATES)[cnn]),
        "weight_decay": _first(config.optim.weight_decay, 5e-4 if cnn else 5e-2),
    }
    chosen_model |= head_of(config.model, config.objective.method)
    resolved_views = config.views.model_copy(update=views)
    check_objective(config.objective, backbone=backbone, views=resolved_views, conv_stem=config.model.conv_stem)
    chosen_objective = {
        "slices": _first(config.objective.slices, recipe.slices),
        "predictor": config.objective.predictor or ("transformer" if config.objective.method == "masked" else "none"),
    }
    precision = config.train.precision or best_precision(device)
    config = config.model_copy(update={"views": resolved_views})
    vector, monitor = _vector(config, backbone=backbone), config.monitor
    if "sample" not in monitor.model_fields_set:
        monitor = monitor.model_copy(update={"sample": min(monitor.sample, EVALUATION_PASSES // (vector.views or 1))})
    return config.model_copy(
        update={
            "recipe": scale,
            "vector": vector,
            "monitor": monitor,
            "model": config.model.model_copy(update=chosen_model),
            "objective": config.objective.model_copy(update=chosen_objective),
            "optim": config.optim.model_copy(update=chosen_optim),
            "train": config.train.model_copy(
                update={
                    "accelerator": device,
                    "precision": precision,
                    "batch_size": config.train.batch_size or recipe.batch,
                }
            ),
        }
    )


def _foreign(model: ModelConfig) -> bool:
    """Return whether training starts from weights of another project, and not from an encoder of ours."""
    if model.init is None or is_own(model.backbone or ""):
        return False
    return not open_source(model.init, backbone=model.backbone).ours


def _vector(config: PretrainConfig, *, backbone: str) -> VectorConfig:
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
    return VectorConfig(**dataclasses.asdict(formation))


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


def outlook(config: PretrainConfig, found: Scan, *, given: PretrainConfig) -> str:
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


def course(config: PretrainConfig, *, samples: int, chosen: str) -> str:
    """What is trained, on which views and batches, and what a small archive has changed of that."""
    views, batch = config.views, config.train.batch_size or 1
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
    config: PretrainConfig, *, given: PretrainConfig, samples: int, processes: int
) -> tuple[PretrainConfig, str]:
    """Fit batch, views and epochs to an archive that gives less than a usual batch, as far as nobody chose them.

    The batch is no larger than the archive. Where it is at most half the usual one, LeJEPA takes 8 views of each
    sample. Where an epoch has one or two steps, there are more epochs, so that the run has `FEWEST_STEPS`.

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
    assert config.train.batch_size is not None
    chosen, multiple = given.train.batch_size, processes * config.train.accumulate
    usual = config.train.batch_size if chosen else max(multiple, config.train.batch_size // multiple * multiple)
    batch = chosen or min(usual, samples - samples % multiple)
    if batch > samples or batch < 2:
        raise too_few(samples, batch_size=chosen or max(2, multiple), multiple=multiple)
    said = [] if batch == usual else [f"a batch of {batch}, since the archive gives {samples} samples an epoch"]
    views, epochs = config.views, config.train.epochs
    if 2 * batch <= usual and config.objective.method == "lejepa" and not _views_given(given):
        added = MANY_VIEWS - (views.n_global or 0) - (views.n_local or 0)
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


def resolve_archive(config: PretrainConfig, *, items: int) -> PretrainConfig:
    """Choose lambda, projector width and epochs for `items` records."""
    views = (config.views.n_global or 0) + (config.views.n_local or 0)
    batch = config.train.batch_size or 256
    seen = batch // config.train.accumulate  # by the objective at a time
    epochs = config.train.epochs
    if epochs is None and config.train.minutes is None:
        epochs = EPOCHS
    hidden = _first(config.model.projector_hidden, 1024 if items <= 5000 else 2048)
    weight = weight_of(config.objective, per_view=default_lambda(views, seen), views=max(1, views), items=items)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"projector_hidden": hidden}),
            "objective": config.objective.model_copy(update={"lamb": config.objective.lamb or weight}),
            "train": config.train.model_copy(update={"batch_size": batch, "epochs": epochs}),
        }
    )


def warnings(config: PretrainConfig, *, samples: int) -> list[str]:
    """What a resolved run on `samples` an epoch should know about its statistics.

    SIGReg's gradient grows with the samples that it sees at once, so a small batch makes it noisy and weak. 64 is our
    own limit: the paper finds no loss down to 128 (Table 1c), and its bias argument is for 16.
    """
    batch, count = config.train.batch_size or 0, config.train.accumulate
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
    o = config.objective
    views = (config.views.n_global or 0) + (config.views.n_local or 0)
    if o.test != "epps_pulley" and o.lamb == default_lambda(views, batch // count):
        lines.append(
            f"The default lambda belongs to the test epps_pulley; {o.test} has gradients of another size "
            "(docs/method.md). Choose --objective.lamb by a small sweep."
        )
    usual = default_lambda(views, batch // count) if views and batch else 0.0
    published = (o.method, o.regularizer, o.test, o.pool, o.weighting)
    weak = batch // count < 128 and o.lamb is not None and o.lamb < usual / 2
    if weak and published == ("lejepa", "sigreg", "epps_pulley", "per_view", "convex"):
        lines.append(
            f"lambda {o.lamb:g} is weak with {batch // count} samples at a time: SIGReg's gradient grows with them, so "
            f"the default here would be {usual:g}. On galaxies, .01 with 32 left 3 of 64 directions."
        )
    if o.test in ("bhep", "henze_zirkler") and config.model.projector_dim > 16:
        lines.append(
            f"{o.test} sees nothing in {config.model.projector_dim} dimensions. Use --model.projector-dim 16 or less."
        )
    return lines


def default_lambda(views: int, batch: int) -> float:
    """.01 / .02 / .05 for 2 / 4 / 8 views (LeJEPA, Table 7), raised by 256/B below a batch of 128, at most .2.

    The second rule is inferred, not published: the gradient of SIGReg grows linearly with the batch.
    """
    lamb = 0.05 if views >= 8 else 0.02 if views >= 3 else 0.01
    return min(0.2, lamb * 256 / batch) if batch < 128 else lamb


def _first(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given
