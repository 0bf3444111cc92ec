"""From settings to a method."""

import torch
from torch import nn

from data_adapters.base import Spec
from lejepa_med.config import ModelConfig, ObjectiveConfig, PretrainConfig, VectorConfig
from lejepa_med.methods.added import AddedTerms
from lejepa_med.methods.base import Method
from lejepa_med.methods.lejepa import LeJEPAMethod
from lejepa_med.methods.masked import MaskedMethod, patch_grid
from lejepa_med.models.encoder import Encoder, create_encoder, is_convolutional
from lejepa_med.models.formation import Formation
from lejepa_med.models.predictor import MLPPredictor, TransformerPredictor
from lejepa_med.models.projector import DINOHead, Projector
from lejepa_med.models.start import checkpoint_activations, freeze, start_from
from lejepa_med.objective.lejepa import LeJEPA, Weights
from lejepa_med.objective.sigreg import SIGReg
from lejepa_med.objective.spectral import SpectralEntropy
from lejepa_med.objective.visreg import VISReg
from lejepa_med.research.byol import BYOLMethod
from lejepa_med.research.contrast import ContrastMethod
from lejepa_med.research.contrast_losses import BarlowTwins, SimCLR, VICReg
from lejepa_med.research.dino import DINOMethod


def build_method(config: PretrainConfig, spec: Spec) -> Method:
    """The method of resolved settings; its weights depend on `train.seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        encoder = build_encoder(config.model, spec, formation=formed(config.vector, spec))
        return _METHODS[config.objective.method](encoder, config)


def formed(config: VectorConfig, spec: Spec) -> Formation:
    """How vectors are formed by these settings; one plain pass where a run of an earlier release has none."""
    return Formation(size=spec.embed_size, views=config.views or 1, layers=config.layers or 1)


def build_encoder(config: ModelConfig, spec: Spec, *, formation: Formation | None = None) -> Encoder:
    """A randomly initialised encoder in the memory layout that is fastest for it."""
    assert config.backbone is not None and config.drop_path is not None
    encoder = create_encoder(
        config.backbone,
        spec,
        drop_path=config.drop_path,
        registers=config.registers,
        conv_stem=config.conv_stem,
        formation=formation,
        code_sha256=config.code_sha256,
    )
    if config.init is not None:
        start_from(encoder, config.init)
    if config.freeze:
        freeze(encoder, config.freeze)
    if config.checkpointing:
        checkpoint_activations(encoder)
    if spec.dims == 2 and encoder.code is None and is_convolutional(config.backbone):
        # a quarter faster on a CPU (benchmarks/results/cpu-settings.md), and needed for tensor cores; the 3-D form
        # (channels_last_3d) made a step 1.3 to 1.8 times slower on a CPU (docs/mri3d.md); the user's own code may use
        # view(), which fails in this layout
        encoder.backbone.to(memory_format=torch.channels_last)
    return encoder


def build_projector(config: ModelConfig, in_dim: int) -> Projector:
    """The projector of these settings."""
    assert config.projector_hidden is not None
    return Projector(in_dim, hidden=config.projector_hidden, depth=config.projector_depth, out_dim=config.projector_dim)


def build_objective(config: ObjectiveConfig) -> LeJEPA:
    """The LeJEPA loss of these settings."""
    assert config.lamb is not None
    return LeJEPA(
        config.lamb, build_regularizer(config), target=config.target, pool=config.pool, weighting=config.weighting
    )


def build_regularizer(config: ObjectiveConfig) -> nn.Module:
    """What keeps the embeddings from collapsing."""
    assert config.slices is not None
    if config.regularizer == "visreg":
        return VISReg(slices=config.slices)
    if config.regularizer == "spectral_entropy":
        return SpectralEntropy()
    return build_sigreg(config)


def build_sigreg(config: ObjectiveConfig) -> nn.Module:
    """SIGReg with the chosen statistical test."""
    assert config.slices is not None
    if config.test == "epps_pulley":
        return SIGReg(slices=config.slices, knots=config.knots, t_max=config.t_max)
    from lejepa_med.research.normality import make_test

    test: nn.Module = make_test(config.test, slices=config.slices, knots=config.knots, t_max=config.t_max)
    return test


def build_added(config: ObjectiveConfig) -> AddedTerms | None:
    """Terms on top of the method's loss; None without any."""
    if config.sigreg_weight == 0 and config.variance_hinge == 0:
        return None
    return AddedTerms(
        build_sigreg(config) if config.sigreg_weight else None,
        sigreg_weight=config.sigreg_weight,
        hinge_weight=config.variance_hinge,
    )


def _lejepa(encoder: Encoder, config: PretrainConfig) -> Method:
    objective = config.objective
    return LeJEPAMethod(
        encoder,
        build_projector(config.model, encoder.dim),
        build_objective(objective),
        regularizer=objective.regularizer,
        added=build_added(objective),
    )


def _masked(encoder: Encoder, config: PretrainConfig) -> Method:
    objective = config.objective
    assert objective.lamb is not None
    grid = patch_grid(encoder)
    predictor = (
        MLPPredictor(encoder.dim, grid=grid)
        if objective.predictor == "mlp"
        else TransformerPredictor(
            encoder.dim, grid=grid, width=objective.predictor_dim, depth=objective.predictor_depth
        )
    )
    return MaskedMethod(
        encoder,
        build_projector(config.model, encoder.dim),
        predictor,
        build_regularizer(objective),
        weigh=Weights(objective.lamb, objective.weighting),
        pool=objective.pool,
        mask=objective.mask,
        mask_ratio=objective.mask_ratio,
        regularizer_name=objective.regularizer,
        added=build_added(objective),
    )


def _contrast(encoder: Encoder, config: PretrainConfig) -> Method:
    losses: dict[str, nn.Module] = {
        "vicreg": VICReg(),
        "barlow_twins": BarlowTwins(),
        "simclr": SimCLR(temperature=config.objective.temperature),
    }
    projector = build_projector(config.model, encoder.dim)
    return ContrastMethod(encoder, projector, losses[config.objective.method], added=build_added(config.objective))


def _byol(encoder: Encoder, config: PretrainConfig) -> Method:
    projector = build_projector(config.model, encoder.dim)
    dim, hidden = config.model.projector_dim, config.model.projector_hidden
    assert hidden is not None
    return BYOLMethod(
        encoder,
        projector,
        Projector(dim, hidden=hidden, depth=2, out_dim=dim),
        momentum=config.objective.teacher_momentum,
        added=build_added(config.objective),
    )


def _dino(encoder: Encoder, config: PretrainConfig) -> Method:
    assert config.model.projector_hidden is not None
    head = DINOHead(
        encoder.dim,
        hidden=config.model.projector_hidden,
        depth=config.model.projector_depth,
        bottleneck=config.model.projector_dim,
        prototypes=config.objective.prototypes,
    )
    return DINOMethod(encoder, head, momentum=config.objective.teacher_momentum, added=build_added(config.objective))


_METHODS = {
    "lejepa": _lejepa,
    "masked": _masked,
    "vicreg": _contrast,
    "barlow_twins": _contrast,
    "simclr": _contrast,
    "byol": _byol,
    "dino": _dino,
}
