"""stable-pretraining: its LeJEPA through its Module, DataModule, Trainer and Manager, as its benchmarks write it.

Source: github.com/galilai-group/stable-pretraining, benchmarks/imagenet10 (views on the CPU; without online probes,
which the other sides do not have either).
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from benchmarks.peers import backbone_of
from benchmarks.train_window import Settings, Window, run_side


class Pictures(torch.utils.data.Dataset[tuple[Any, int]]):
    """Files of a folder as (RGB picture, 0), for its FromTorchDataset."""

    def __init__(self, folder: str) -> None:
        self.files = sorted(str(path) for path in Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.open(self.files[index]), 0


def train(settings: Settings, window: Window) -> None:
    """Its LeJEPA benchmark with our backbone name, views, batch and workers."""
    import lightning
    import stable_pretraining as spt
    from stable_pretraining.backbone import MLP
    from stable_pretraining.data import transforms
    from stable_pretraining.methods.lejepa import LeJEPA, LeJEPAOutput, SlicedEppsPulley

    n_global = max(1, settings.n_global - (not settings.n_local))
    differs = ["float32 views, normalised in the loader", "contiguous memory format", "SIGReg on pooled views"]
    if not settings.n_local:
        differs.append("it needs a local view: the last one goes through the encoder by itself, no part of the target")
    window.facts["differs"] = differs

    def view(size: int, area: tuple[float, float]) -> Any:
        return transforms.Compose(
            transforms.RGB(),
            transforms.RandomResizedCrop((size, size), scale=area),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
            transforms.RandomGrayscale(p=0.2),
            # 23 pixels at 224, as in its benchmark; a tenth of the side elsewhere (SimCLR's rule), which is less work
            transforms.GaussianBlur(kernel_size=size // 10 | 1, sigma=(0.1, 2.0), p=0.5),
            transforms.RandomSolarize(threshold=128, p=0.2),
            transforms.ToImage(**spt.data.static.ImageNet),
        )

    kinds = ["global"] * n_global + ["local"] * (len(settings.sizes) - n_global)
    views = {f"{kind}_{k}": view(*size) for k, (kind, size) in enumerate(zip(kinds, settings.sizes, strict=True))}

    class AnyBackbone(LeJEPA):
        """Its own constructor takes transformers only (it reads `embed_dim`); the rest of the class takes any."""

        def __init__(self) -> None:
            super(LeJEPA, self).__init__()
            self.backbone = backbone_of(settings)
            self.embed_dim = self.backbone.num_features
            self.projector = MLP(
                in_channels=self.embed_dim,
                hidden_channels=[settings.hidden, settings.hidden, settings.dim],
                norm_layer="batch_norm",
                activation_layer=nn.ReLU,
            )
            self.sigreg = SlicedEppsPulley(num_slices=settings.slices)
            self.lamb = 0.02

    def lejepa(module: Any, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        parts = {kind: [batch[key]["image"] for key in batch if key.startswith(kind)] for kind in ("global", "local")}
        output: LeJEPAOutput = module.model.forward(global_views=parts["global"], local_views=parts["local"])
        for name, value in (("sigreg", output.sigreg_loss), ("inv", output.inv_loss), ("loss", output.loss)):
            module.log(f"{stage}/{name}", value, on_step=True, on_epoch=True, sync_dist=True)
        return {"loss": output.loss, "embedding": output.embedding}

    data = spt.data.FromTorchDataset(
        Pictures(settings.archive), names=["image", "label"], transform=transforms.MultiViewTransform(views)
    )
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=settings.batch,
        num_workers=settings.workers,
        drop_last=True,
        persistent_workers=settings.workers > 0,
        shuffle=True,
    )
    optim = {
        "optimizer": {"type": "AdamW", "lr": settings.lr, "weight_decay": settings.weight_decay},
        "scheduler": {
            "type": "LinearWarmupCosineAnnealing",
            "peak_step": 0.05,
            "start_factor": 0.01,
            "end_lr": settings.lr / 1000,
            "total_steps": len(loader),
        },
        "interval": "step",
    }
    trainer = lightning.Trainer(
        max_epochs=1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[lightning.pytorch.callbacks.LearningRateMonitor(logging_interval="step")],
        logger=lightning.pytorch.loggers.CSVLogger(save_dir=settings.out),
        precision=settings.precision,
        devices=1,
        accelerator="gpu" if settings.accelerator == "cuda" else "cpu",
        enable_checkpointing=False,
    )
    module = spt.Module(model=AnyBackbone(), forward=lejepa, optim=optim)
    with window.follow():
        spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader))()


if __name__ == "__main__":
    run_side(train, package="stable-pretraining")
