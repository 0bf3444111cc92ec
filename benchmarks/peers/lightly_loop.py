"""lightly: the plain PyTorch loop of its LeJEPA example, with its transforms, data set, projection head and loss.

Source: docs.lightly.ai/self-supervised-learning/examples/lejepa.html
"""

import contextlib

import torch

from benchmarks.peers import backbone_of
from benchmarks.train_window import Settings, Window, run_side


def train(settings: Settings, window: Window) -> None:
    """Its example with our backbone name, views, batch and workers."""
    from lightly.data import LightlyDataset
    from lightly.loss import LeJEPALoss
    from lightly.models.modules import LeJEPAProjectionHead
    from lightly.transforms.dino_transform import DINOViewTransform
    from lightly.transforms.multi_view_transform import MultiViewTransform

    window.facts["differs"] = ["crops bicubic", "float32 views, normalised in the loader", "contiguous memory format"]
    if not settings.n_local:
        window.facts["differs"].append("its loss needs a local view: the last one is no part of the target")
    # its colour jitter of half strength is .4, .4, .2, .1
    views = [
        DINOViewTransform(crop_size=size, crop_scale=area, gaussian_blur=0.5, solarization_prob=0.2)
        for size, area in settings.sizes
    ]
    loader = torch.utils.data.DataLoader(
        LightlyDataset(settings.archive, transform=MultiViewTransform(views)),
        batch_size=settings.batch,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
    )
    backbone = backbone_of(settings)
    head = LeJEPAProjectionHead(backbone.num_features, hidden_dim=settings.hidden, output_dim=settings.dim)
    device = torch.device(settings.accelerator)
    model = torch.nn.Sequential(backbone, head).to(device)
    criterion = LeJEPALoss(sigreg_num_vectors=settings.slices).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "16-mixed")
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(settings.precision)
    autocast = torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()
    total = torch.zeros((), device=device)
    with window.follow():
        for batch in loader:
            images = [view.to(device) for view in batch[0]]
            with autocast:
                z = model(torch.cat(images[: settings.n_global])).unflatten(0, (settings.n_global, -1))
                if settings.n_local:
                    local = model(torch.cat(images[settings.n_global :])).unflatten(0, (settings.n_local, -1))
                else:
                    z, local = z[:-1], z[-1:]
            with torch.autocast(device.type, enabled=False):
                loss = criterion(global_proj=z.float(), local_proj=local.float())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += loss.detach()


if __name__ == "__main__":
    run_side(train, package="lightly")
