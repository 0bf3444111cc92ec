"""Other libraries' training loops for `benchmarks.train`, each written as its documentation shows it."""

import timm
from torch import nn

from benchmarks.train_window import Settings


def backbone_of(settings: Settings) -> nn.Module:
    """The timm model as their examples create it; a ViT takes several view sizes."""
    sizes = {"dynamic_img_size": True} if "vit" in settings.backbone else {}
    model: nn.Module = timm.create_model(settings.backbone, num_classes=0, drop_path_rate=settings.drop_path, **sizes)
    return model
