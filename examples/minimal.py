"""LeJEPA in one file: the whole method with torch and timm alone, to read and to change.

    python examples/minimal.py                                  # made pictures, less than a minute of one CPU core
    python examples/minimal.py --images PHOTOS --steps 5000 --batch 256 --size 128 --out encoder.safetensors

Method: R. Balestriero and Y. LeCun, "LeJEPA", arXiv 2511.08544. The library does the same at scale (several processes,
real archives, resuming, reports); a test proves that its loss equals the one below.
"""

import argparse
import math
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2  # comes with timm


def sigreg(z: Tensor, directions: Tensor, t_max: float = 3.0, knots: int = 17) -> Tensor:
    """How far is each view from N(0, I)? Epps-Pulley statistic along random directions, averaged.

    z: (views, batch, dim); directions: (dim, slices) with columns of unit length.
    """
    t = torch.linspace(0, t_max, knots, dtype=z.dtype, device=z.device)
    phi = torch.exp(-t.square() / 2)  # the characteristic function of N(0, 1), and also the weight
    step = torch.full_like(t, 2 * t_max / (knots - 1))  # trapezoid; doubled, for the integrand is even
    step[[0, -1]] /= 2
    angles = (z @ directions)[..., None] * t  # (views, batch, slices, knots)
    error = (angles.cos().mean(1) - phi).square() + angles.sin().mean(1).square()
    return z.shape[1] * (error * phi * step).sum(-1).mean()


def lejepa_loss(z: Tensor, n_global: int, lamb: float, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pull all views of an image to the centre of its global views; keep every view's batch standard normal.

    Returns the loss, its invariance part and its SIGReg part.
    """
    centre = z[:n_global].mean(0)
    invariance = (centre - z).square().mean()
    regulariser = sigreg(z, directions)
    return (1 - lamb) * invariance + lamb * regulariser, invariance, regulariser


def made_pictures(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Discs, squares, rings and stripes in any colour, place and size: (n, 3, size, size) uint8."""

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    x, y, scale = x - draw(-0.3, 0.3, 1, 1), y - draw(-0.3, 0.3, 1, 1), draw(0.4, 0.7, 1, 1)
    r = (x.square() + y.square()).sqrt() / scale
    square, stripes = torch.maximum(x.abs(), y.abs()) / scale < 0.8, ((x + y) / scale * 7).sin() > 0
    masks = torch.stack([r < 1, square, (r < 1) & (r > 0.6), (r < 1) & stripes])
    mask = masks[torch.arange(n) % 4, torch.arange(n)][:, None]
    pictures = torch.where(mask, draw(0.5, 1, 3, 1, 1), draw(0, 0.5, 3, 1, 1)) + draw(-0.1, 0.1, 3, size, size)
    return (pictures.clamp(0, 1) * 255).byte()


def folder_pictures(folder: Path, size: int) -> Tensor:
    """Every JPEG and PNG below `folder`, resized and centre-cropped: (n, 3, size, size) uint8."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(paths) < 2:
        raise SystemExit(f"--images needs a folder with at least two JPEG or PNG files; found {len(paths)}.")
    crop = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    return torch.stack([crop(Image.open(path).convert("RGB")) for path in paths])


def make_views(pictures: Tensor, views: int, augment: nn.Module) -> Tensor:
    """(batch, 3, H, W) uint8 -> (views, batch, 3, size, size) in [0, 1]; each picture is augmented by itself."""
    return torch.stack([torch.stack([augment(p) for p in pictures]) for _ in range(views)]).float() / 255


def main(argv: list[str] | None = None) -> list[float]:
    """Train, print, and return the loss of every step."""
    parser = argparse.ArgumentParser(description="LeJEPA in one file.")
    parser.add_argument("--images", type=Path, help="folder of JPEG or PNG files; made pictures without it")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--views", type=int, default=4, help="of one size and all global, as for CNNs")
    parser.add_argument("--lamb", type=float, default=0.02, help="weight of SIGReg; grows with the number of views")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--slices", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to save the encoder, as safetensors")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    if args.images:
        pictures = folder_pictures(args.images, args.size)
    else:
        pictures = made_pictures(2048, args.size, torch.Generator().manual_seed(args.seed))
    crop, jitter = v2.RandomResizedCrop(args.size, scale=(0.3, 1.0)), v2.ColorJitter(0.4, 0.4, 0.4)
    augment = v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(p=0.2)])
    encoder = timm.create_model("resnet18", num_classes=0).to(device)  # weights start at random
    layers = [layer for _ in range(2) for layer in (nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU())]
    projector = nn.Sequential(*layers, nn.Linear(512, 64)).to(device)  # 512: the width of resnet18's features
    parameters = [*encoder.parameters(), *projector.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=5e-4)
    warm_up = max(1, args.steps // 20)  # then a cosine down to a thousandth
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / warm_up, 1e-3 + 0.999 * (1 + math.cos(math.pi * s / args.steps)) / 2)
    )
    losses = []
    for step in range(args.steps):
        batch = pictures[torch.randperm(len(pictures))[: args.batch]]
        views = make_views(batch, args.views, augment).to(device)
        z = projector(encoder(views.flatten(0, 1))).unflatten(0, views.shape[:2])
        # New directions at every step: few, changing ones see more than many fixed ones.
        directions = nn.functional.normalize(torch.randn(z.shape[2], args.slices, device=device), dim=0)
        loss, invariance, regulariser = lejepa_loss(z, args.views, args.lamb, directions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % max(1, args.steps // 10) == 0 or step == args.steps - 1:
            # SIGReg is about 1 for a Gaussian batch of any size; 0.4 times the batch size means collapse.
            print(f"step {step:5d}  loss {loss:.4f}  invariance {invariance:.4f}  SIGReg {regulariser:.2f}")
    if args.out:
        save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, args.out)
        print(f"saved; read it with: timm.create_model('resnet18', num_classes=0, checkpoint_path='{args.out}')")
    return losses


if __name__ == "__main__":
    main()
