"""Settings left open become numbers: from the machine before the scan, from the archive after it."""

from data_adapters.registry import load_class
from lejepa_med.config import PretrainConfig
from lejepa_med.data.sampler import too_few
from lejepa_med.errors import ConfigError
from lejepa_med.methods.settings import check_objective, head_of, weight_of
from lejepa_med.models.architectures import check_name, check_vit_options, is_convolutional, is_monai
from lejepa_med.training.precision import best_precision

# Where nothing is given: by dimensions (2, 3), then by device (cpu, cuda).
BACKBONES = (("resnet18", "vit_small_patch16_224"), ("monai:resnet10", "monai:vit_small"))
BATCH = ((64, 256), (16, 64))


def resolve_machine(config: PretrainConfig, *, device: str) -> PretrainConfig:
    """Choose backbone, views, precision and optimiser for 'cpu' or 'cuda'.

    CNN: same-size views, as in the paper's in-domain runs; ViT: 2 global and 6 local views (multi-crop). Volumes on a
    GPU: 2 global views of 96^3 voxels and 6 local ones of 48^3 for every backbone (3DINO's sizes). The small sizes on
    a CPU are what trains in minutes there; so is its small batch, since a short run has few steps (one pair of runs,
    batch and lambda changed together: benchmarks/results/galaxies-trials.md).

    The masked method has one global view. Baselines have their paper's depth and width of the projector.

    Raises:
        UserError: an unknown modality or backbone, a backbone of other dimensions than the modality, or an objective
            whose settings do not go together.
    """
    on_cpu = device == "cpu"
    dims = getattr(load_class(config.modality), "dims", 2)
    volumes = dims == 3
    backbone = config.model.backbone or BACKBONES[volumes][not on_cpu]
    check_name(backbone, dims=dims)  # now, and not after a scan of hours
    check_vit_options(backbone, registers=config.model.registers, conv_stem=config.model.conv_stem)
    cnn = is_convolutional(backbone)
    if volumes and not on_cpu:
        views = {"n_global": 2, "n_local": 6, "global_size": 96}
    elif volumes:
        views = {"n_global": 4 if cnn else 2, "n_local": 0 if cnn else 2, "global_size": 48}
    elif cnn:
        views = {"n_global": 4, "n_local": 0, "global_size": 64 if on_cpu else 128}
    else:
        views = {"n_global": 2, "n_local": 2 if on_cpu else 6, "global_size": 64 if on_cpu else 224}
    if config.objective.method == "masked":
        views |= {"n_global": 1, "n_local": 0}
    views |= {name: value for name, value in config.views.model_dump().items() if value is not None}
    views.setdefault("local_size", _local_size(views["global_size"], volumes=volumes))
    chosen_model = {"backbone": backbone, "drop_path": _first(config.model.drop_path, 0.0 if cnn else 0.1)}
    chosen_optim = {
        "lr": _first(config.optim.lr, 2e-3 if cnn else 5e-4),
        "weight_decay": _first(config.optim.weight_decay, 5e-4 if cnn else 5e-2),
    }
    chosen_model |= head_of(config.model, config.objective.method)
    resolved_views = config.views.model_copy(update=views)
    check_objective(config.objective, backbone=backbone, views=resolved_views, conv_stem=config.model.conv_stem)
    chosen_objective = {
        "slices": _first(config.objective.slices, 256 if on_cpu else 1024),
        "predictor": config.objective.predictor or ("transformer" if config.objective.method == "masked" else "none"),
    }
    precision = config.train.precision or best_precision(device)
    return config.model_copy(
        update={
            "views": resolved_views,
            "model": config.model.model_copy(update=chosen_model),
            "objective": config.objective.model_copy(update=chosen_objective),
            "optim": config.optim.model_copy(update=chosen_optim),
            "train": config.train.model_copy(
                update={
                    "accelerator": device,
                    "precision": precision,
                    "batch_size": config.train.batch_size or BATCH[volumes][not on_cpu],
                }
            ),
        }
    )


def _local_size(global_size: int, *, volumes: bool) -> int:
    """The multiple of 16 next to 3/7 of the global side: 96 for 224, as in the paper's multi-crop.

    Of volumes next to its half: 48 for 96, as 3DINO.
    """
    return max(16, round(global_size * (1 / 2 if volumes else 3 / 7) / 16) * 16)


def resolve_batch(config: PretrainConfig, *, given: int | None, samples: int, processes: int) -> PretrainConfig:
    """Make the default batch as small as a small archive needs; a batch that was `given` must fit.

    Args:
        config: with a batch size.
        given: the batch size that the user chose, or None.
        samples: that the archive gives in an epoch.
        processes: that share a batch.

    Raises:
        ConfigError: the batch that was given, or the smallest possible one, is larger than the archive.
    """
    assert config.train.batch_size is not None
    multiple = processes * config.train.accumulate
    batch = given or min(config.train.batch_size, samples - samples % multiple)
    if batch > samples or batch < 2:
        raise too_few(samples, batch_size=given or max(2, multiple), multiple=multiple)
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": batch})})


def resolve_archive(config: PretrainConfig, *, items: int) -> PretrainConfig:
    """Choose lambda, projector width and epochs for `items` records."""
    views = (config.views.n_global or 0) + (config.views.n_local or 0)
    batch = config.train.batch_size or 256
    seen = batch // config.train.accumulate  # by the objective at a time
    epochs = config.train.epochs
    if epochs is None and config.train.minutes is None:
        epochs = 100
    hidden = _first(config.model.projector_hidden, 1024 if items <= 5000 else 2048)
    weight = weight_of(config.objective, per_view=default_lambda(views, seen), views=max(1, views), items=items)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"projector_hidden": hidden}),
            "objective": config.objective.model_copy(update={"lamb": config.objective.lamb or weight}),
            "train": config.train.model_copy(update={"batch_size": batch, "epochs": epochs}),
        }
    )


def warnings(config: PretrainConfig, *, world_size: int) -> list[str]:
    """What a resolved run should know about its statistics.

    SIGReg's gradient grows with the samples that it sees at once, so a small batch makes it noisy and weak. 64 is our
    own limit: the paper finds no loss down to 128 (Table 1c), and its bias argument is for 16.

    Raises:
        ConfigError: a batch that does not divide into its parts.
    """
    batch, count = config.train.batch_size or 0, config.train.accumulate
    if batch % (count * world_size):
        raise ConfigError(
            f"A batch of {batch} does not divide into {count} parts on {world_size} processes.",
            remedy=f"Set --train.batch-size to a multiple of {count * world_size}.",
        )
    lines = []
    if count > 1:
        lines.append(
            f"--train.accumulate {count}: the objective compares {batch // count} samples at a time, not {batch}. "
            "Memory is saved, but it is not training with the larger batch; --model.checkpointing saves memory and is."
        )
    if batch // count < 64 and not is_monai(config.model.backbone or ""):
        lines.append(
            f"The objective sees {batch // count} samples at a time: below 64 its directions are noisy. Use a larger "
            "--train.batch-size, or smaller views, where memory permits."
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
