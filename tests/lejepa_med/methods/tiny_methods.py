"""Methods with tiny encoders, for tests of the methods themselves."""

from typing import Any

import timm.models.vision_transformer as vit
import torch
from torch import Tensor, nn

from data_adapters.base import Spec
from lejepa_med.methods.base import AddedTerms, Method, Projector
from lejepa_med.methods.lejepa.method import LeJEPAMethod
from lejepa_med.methods.masked.method import MaskedMethod, MLPPredictor, TransformerPredictor
from lejepa_med.models.encoder import Encoder
from lejepa_med.objective.lejepa import LeJEPA, Weights
from lejepa_med.objective.regularizers import SpectralEntropy, VISReg
from lejepa_med.objective.sigreg import SIGReg
from lejepa_med.research.contrast.method import BarlowTwins, ContrastMethod, SimCLR, VICReg
from lejepa_med.research.teachers.method import BYOLMethod, DINOHead, DINOMethod

SIDE = 32
SPEC = Spec(channels=3, global_size=SIDE, local_size=16, n_global=2, n_local=1, mean=(0.5,) * 3, std=(0.25,) * 3)
NAMES = ("lejepa", "pairwise-visreg", "spectral", "vicreg", "barlow", "simclr", "byol", "dino", "masked", "masked-mlp")


class Backbone(nn.Sequential):
    """A convolution with batch normalisation, pooled."""

    num_features = 12

    def __init__(self) -> None:
        conv = nn.Conv2d(3, 12, 5, stride=4, bias=False)  # a bias would have no gradient but rounding errors
        super().__init__(conv, nn.BatchNorm2d(12), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def make_vit(**settings: Any) -> vit.VisionTransformer:
    """A ViT of 4 x 4 patches with a class token."""
    arguments = {"img_size": SIDE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    return vit.VisionTransformer(**{**arguments, **settings})


def make_encoder(backbone: nn.Module) -> Encoder:
    return Encoder(backbone, name="tiny", model_args={}, spec=SPEC)


def make_method(name: str, *, seed: int = 0, added: AddedTerms | None = None) -> Method:
    """One of NAMES, with weights that depend on the seed only."""
    torch.manual_seed(seed)
    if name.startswith("masked"):
        encoder = make_encoder(make_vit())
        mlp = name == "masked-mlp"
        predictor = MLPPredictor(16, grid=(4, 4)) if mlp else TransformerPredictor(16, grid=(4, 4), width=32, depth=1)
        mask = "random_token" if mlp else "multi_block"
        head, weigh = Projector(16, hidden=16, out_dim=4), Weights(0.1)
        return MaskedMethod(encoder, head, predictor, SIGReg(8), weigh=weigh, mask=mask, added=added)
    encoder = make_encoder(Backbone())
    head = Projector(12, hidden=16, out_dim=4)
    lejepa = {
        "lejepa": LeJEPA(0.1, SIGReg(8)),
        "pairwise-visreg": LeJEPA(0.4, VISReg(8), target="pairwise", pool="pooled"),
        "spectral": LeJEPA(0.4, SpectralEntropy(), weighting="additive"),
    }
    contrast = {"vicreg": VICReg(), "barlow": BarlowTwins(), "simclr": SimCLR(0.5)}
    if name in lejepa:
        return LeJEPAMethod(encoder, head, lejepa[name], added=added)
    if name in contrast:
        return ContrastMethod(encoder, head, contrast[name], added=added)
    if name == "byol":
        return BYOLMethod(encoder, head, Projector(4, hidden=8, depth=2, out_dim=4), momentum=0.9, added=added)
    dino = DINOHead(12, hidden=16, depth=2, bottleneck=8, prototypes=10)
    return DINOMethod(encoder, dino, momentum=0.9, added=added)


def make_views(name: str, *, batch: int = 6, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """Two global uint8 views, and a smaller local one for the methods that take it."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 256, (2, batch, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    whole = (whole // 2 + 20 * torch.arange(batch)[:, None, None, None]).clamp(max=255).to(torch.uint8)
    return whole, None if name.startswith("masked") else whole[:1, ..., :16, :16].contiguous()
