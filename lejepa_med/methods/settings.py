"""Settings of the objective: what goes together, and what a method takes where nothing is given."""

from collections.abc import Iterator

from lejepa_med.config import ModelConfig, ObjectiveConfig, ViewsConfig
from lejepa_med.errors import ConfigError
from lejepa_med.methods.masks import MIN_SIDE
from lejepa_med.models.architectures import plain_vit_patch

# Depth and width of a method's projector, from its paper; hidden widths are the project's, since archives are small.
# VICReg and Barlow Twins use 8192 for ImageNet; 2048 is a quarter of that, as their hidden layers here are.
HEADS = {
    "vicreg": (3, 2048),
    "barlow_twins": (3, 2048),
    "simclr": (2, 128),
    "byol": (2, 256),
    "dino": (3, 256),
}
REGULARISED = ("lejepa", "masked")
TEACHERS = ("byol", "dino")
# VISReg's best lambda, convex (arXiv 2606.02572, Tables 3 and 12): small archives, and ImageNet.
VISREG_LAMBDA, VISREG_LAMBDA_LARGE, LARGE = 0.6, 0.9, 1_000_000
SPECTRAL_LAMBDA = 0.5  # equal weights, as in the article; nothing is published


def head_of(model: ModelConfig, method: str) -> dict[str, int]:
    """Depth and width of the method's projector where the user gave none; nothing for LeJEPA."""
    chosen = dict(zip(("projector_depth", "projector_dim"), HEADS.get(method, ()), strict=False))
    return {name: value for name, value in chosen.items() if name not in model.model_fields_set}


def weight_of(objective: ObjectiveConfig, *, per_view: float, views: int, items: int) -> float | None:
    """Lambda where none is given.

    Args:
        objective: its settings.
        per_view: what SIGReg takes per view with convex weights.
        views: number of views.
        items: size of the archive.

    Returns:
        The lambda with the same ratio of regulariser to prediction: pooled views make SIGReg `views` times stronger,
        and additive weights leave out the factor 1 - lambda. None for a method without it.
    """
    if objective.method not in REGULARISED:
        return None
    if objective.regularizer == "visreg":
        lamb = VISREG_LAMBDA_LARGE if items >= LARGE else VISREG_LAMBDA
    elif objective.regularizer == "spectral_entropy":
        lamb = SPECTRAL_LAMBDA
    else:
        lamb = per_view / views if objective.pool == "pooled" else per_view
    return lamb / (1 - lamb) if objective.weighting == "additive" else lamb


def check_objective(objective: ObjectiveConfig, *, backbone: str, views: ViewsConfig, conv_stem: bool = False) -> None:
    """Refuse settings that do not go together. Called with the resolved views, before anything is read.

    Raises:
        ConfigError: all of them at once, with what to do.
    """
    found = list(_issues(objective, backbone, views))
    if conv_stem and objective.method == "masked":
        stem = "The masked method hides patches, but a convolutional stem has seen their neighbours' pixels."
        found.append((stem, "Leave out --model.conv-stem."))
    if found:
        raise ConfigError(
            " ".join(issue for issue, _ in found), remedy=" ".join(dict.fromkeys(remedy for _, remedy in found))
        )


def _issues(o: ObjectiveConfig, backbone: str, views: ViewsConfig) -> Iterator[tuple[str, str]]:
    yield from _idle(o)
    method = o.method
    n_global, n_local = views.n_global or 0, views.n_local or 0
    if o.lamb is not None and o.lamb >= 1 and o.weighting == "convex":
        yield (
            f"Convex weights need a lambda below 1, got {o.lamb}.",
            "Lower --objective.lamb, or set --objective.weighting additive.",
        )
    if method != "masked" and n_global + n_local < 2:
        yield (
            f"{method} compares views, but there is only one.",
            "Set --views.n-global 2 or --views.n-local 1 (or more).",
        )
    if o.sigreg_weight > 0 and method in REGULARISED and o.regularizer == "sigreg":
        yield (
            f"{method} has SIGReg in its loss already.",
            "Leave out --objective.sigreg-weight, and raise --objective.lamb instead.",
        )
    if o.variance_hinge > 0 and method == "vicreg":
        yield ("VICReg has the variance hinge in its loss already.", "Leave out --objective.variance-hinge.")
    if method == "masked":
        yield from _masked(o, backbone, views)


def _masked(o: ObjectiveConfig, backbone: str, views: ViewsConfig) -> Iterator[tuple[str, str]]:
    if views.n_local:
        yield ("The masked method takes global views only.", "Set --views.n-local 0.")
    if o.predictor == "none":
        yield ("The masked method needs a predictor.", "Set --objective.predictor mlp or transformer.")
    patch = plain_vit_patch(backbone)
    if patch is None:
        yield (
            f"Patches of '{backbone}' cannot be hidden: the masked method needs timm's plain ViT.",
            "Use --backbone vit_small_patch16_224 or another vit_*, or --objective.method lejepa.",
        )
    elif (views.global_size or 0) // patch < MIN_SIDE:
        yield (
            f"Views of {views.global_size} px hold fewer than {MIN_SIDE} x {MIN_SIDE} patches of {patch} px.",
            f"Set --views.global-size {MIN_SIDE * patch} or more, or take a backbone with smaller patches.",
        )


def _idle(o: ObjectiveConfig) -> Iterator[tuple[str, str]]:
    """Settings that differ from their default and would have no effect."""
    regularised = o.method in REGULARISED
    sigreg = (regularised and o.regularizer == "sigreg") or o.sigreg_weight > 0
    users = {
        "target": (o.method == "lejepa", "--objective.method lejepa"),
        "pool": (regularised, "--objective.method lejepa or masked"),
        "weighting": (regularised, "--objective.method lejepa or masked"),
        "regularizer": (regularised, "--objective.method lejepa or masked"),
        "lamb": (regularised, "--objective.method lejepa or masked"),
        "test": (sigreg, "--objective.regularizer sigreg, or --objective.sigreg-weight"),
        "knots": (sigreg and o.test == "epps_pulley", "--objective.test epps_pulley"),
        "t_max": (sigreg and o.test == "epps_pulley", "--objective.test epps_pulley"),
        "mask": (o.method == "masked", "--objective.method masked"),
        "mask_ratio": (o.method == "masked" and o.mask == "random_token", "--objective.mask random_token"),
        "predictor": (o.method == "masked" or o.predictor == "none", "--objective.method masked"),
        "predictor_dim": (o.method == "masked" and o.predictor != "mlp", "--objective.predictor transformer"),
        "predictor_depth": (o.method == "masked" and o.predictor != "mlp", "--objective.predictor transformer"),
        "temperature": (o.method == "simclr", "--objective.method simclr"),
        "teacher_momentum": (o.method in TEACHERS, "--objective.method byol or dino"),
        "prototypes": (o.method == "dino", "--objective.method dino"),
    }
    for name, (used, needs) in users.items():
        if not used and getattr(o, name) != ObjectiveConfig.model_fields[name].default:
            flag = "--objective." + name.replace("_", "-")
            yield (f"{flag} has no effect with these settings.", f"Leave out {flag}, or set {needs}.")
