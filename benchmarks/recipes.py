"""Eight views of one sample in torchvision.transforms.v2, MONAI and albumentations, as their documentation writes it.

Each function takes a modality's sizes and returns a callable: decoded source -> list of eight tensors. What a library
has no transform for is left out and named in LACKS, so a side that lacks steps does less work than ours.
"""

from collections.abc import Callable
from typing import Any

import albumentations as A
import monai.transforms as M
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torchvision.transforms import v2

Views = Callable[[np.ndarray], list[Any]]
PLAN = (("global", 224, 2), ("local", 96, 6))
AREA = {
    "images": {"global": (0.3, 1.0), "local": (0.05, 0.3)},
    "galaxy": {"global": (0.5, 1.0), "local": (0.15, 0.4)},
    "histology": {"global": (0.27, 0.4), "local": (0.05, 0.073)},
    "mri": {"global": (0.4, 1.0), "local": (0.1, 0.4)},
}
LACKS = {
    ("images", "torchvision"): "nothing",
    ("images", "MONAI"): "saturation, hue, grey, solarize",
    ("images", "albumentations"): "nothing; linear crops, which alias (its default)",
    ("galaxy", "torchvision"): "dust, seeing by band, noise relative to the image",
    ("galaxy", "MONAI"): "dust, seeing by band, noise relative to the image",
    ("galaxy", "albumentations"): "dust; blur and noise only after the stretch, since it cuts floats to [0, 1]",
    ("histology", "torchvision"): "stain jitter",
    ("histology", "MONAI"): "stain jitter, hue, saturation, JPEG",
    ("histology", "albumentations"): "nothing (HEStain for the stain); linear crops, which alias (its default)",
    ("mri", "torchvision"): "bias field, Gibbs, Rician noise",
    ("mri", "MONAI"): "nothing",
    ("mri", "albumentations"): "bias field, Gibbs, Rician noise; linear crops, which alias (its default)",
}


def _views(chains: dict[str, Callable[[Any], Any]], start: Callable[[np.ndarray], Any]) -> Views:
    def views(source: np.ndarray) -> list[Any]:
        first = start(source)
        return [chains[kind](first) for kind, _, count in PLAN for _ in range(count)]

    return views


def _stretch(x: torch.Tensor) -> torch.Tensor:
    x = x * 4 + 0.03
    intensity = x.clamp(min=0).mean(0, keepdim=True).clamp(min=1e-6)
    return (x * torch.asinh(20 * intensity) / (20**0.5 * intensity)).clamp(0, 1)


def torchvision(modality: str) -> Views:
    """torchvision.transforms.v2 on tensors, as its guide advises: antialiased crops, uint8 where the source is."""
    p = v2.RandomApply
    middle: dict[str, list[Any]] = {
        "images": [
            v2.RandomHorizontalFlip(),
            p([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            p([v2.GaussianBlur(9, (0.1, 2.0))], 0.5),
            v2.RandomSolarize(128, 0.2),
        ],
        "galaxy": [
            v2.RandomHorizontalFlip(),
            p([v2.GaussianBlur(9, (0.1, 2.0))], 0.5),
            p([v2.GaussianNoise(sigma=0.005, clip=False)], 0.5),
            v2.Lambda(_stretch),
        ],
        "histology": [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            p([v2.ColorJitter(0.2, 0.2, 0.1, 0.05)], 0.8),
            p([v2.GaussianBlur(7, (0.1, 1.5))], 0.3),
            p([v2.JPEG((60, 95))], 0.1),
        ],
        "mri": [
            v2.RandomHorizontalFlip(),
            p([v2.RandomRotation(10)], 0.3),
            p([v2.ColorJitter(brightness=0.25, contrast=0.25)], 0.3),
            v2.Lambda(lambda x: x.clamp(0, 1) ** float(torch.empty(()).uniform_(0.7, 1.5))),
            p([v2.GaussianBlur(5, (0.25, 1.0))], 0.3),
        ],
    }
    before = [v2.RandomRotation(180, v2.InterpolationMode.BILINEAR)] if modality == "galaxy" else []
    chains = {
        kind: v2.Compose([*before, v2.RandomResizedCrop(size, AREA[modality][kind], antialias=True), *middle[modality]])
        for kind, size, _ in PLAN
    }
    return _views(chains, lambda image: torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))


def monai(modality: str) -> Views:
    """MONAI on float tensors: crop by scale, area resize, and its intensity transforms."""
    middle: dict[str, list[Any]] = {
        "images": [M.RandFlip(0.5, 1), M.RandScaleIntensity(0.4, 0.8), M.RandAdjustContrast(0.8, (0.7, 1.4))],
        "galaxy": [M.RandFlip(0.5, 1)],
        "histology": [M.RandFlip(0.5, 0), M.RandFlip(0.5, 1), M.RandRotate90(0.5), M.RandScaleIntensity(0.2, 0.8)],
        "mri": [
            M.RandFlip(0.5, 1),
            M.RandRotate(range_x=0.17, prob=0.3),
            M.RandBiasField(degree=3, coeff_range=(-0.1, 0.1), prob=0.3),
            M.RandAdjustContrast(0.5, (0.7, 1.5)),
            M.RandScaleIntensity(0.25, 0.3),
            M.OneOf(
                [M.RandGaussianSmooth(prob=0.3), M.RandGibbsNoise(0.3, (0.2, 0.6)), M.RandRicianNoise(0.3, std=0.02)]
            ),
        ],
    }
    after: dict[str, list[Any]] = {
        "images": [M.RandGaussianSmooth((0.1, 2.0), (0.1, 2.0), prob=0.5)],
        "galaxy": [
            M.RandGaussianSmooth((0.1, 2.0), (0.1, 2.0), prob=0.5),
            M.RandGaussianNoise(0.5, std=0.005),
            M.Lambda(_stretch),
        ],
        "histology": [M.RandGaussianSmooth((0.1, 1.5), (0.1, 1.5), prob=0.3)],
        "mri": [],
    }
    before = [M.RandRotate(range_x=np.pi, prob=1.0, padding_mode="reflection")] if modality == "galaxy" else []
    chains = {}
    for kind, size, _ in PLAN:
        low, high = (share**0.5 for share in AREA[modality][kind])
        crop = M.RandScaleCrop(roi_scale=low, max_roi_scale=high, random_size=True)
        resize = M.Resize((size, size), mode="area")
        chains[kind] = M.Compose([*before, crop, resize, *middle[modality], *after[modality]])
    return _views(chains, lambda image: torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)))


def albumentations(modality: str) -> Views:
    """Albumentations' own defaults on (H, W, C) arrays, with ToTensorV2 at the end."""
    middle: dict[str, list[Any]] = {
        "images": [
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(sigma_limit=(0.1, 2.0), blur_limit=0, p=0.5),
            A.Solarize(p=0.2),
        ],
        "galaxy": [
            A.HorizontalFlip(p=0.5),
            A.GaussianBlur(sigma_limit=(0.1, 2.0), blur_limit=0, p=0.5),
            A.GaussNoise(std_range=(0.005, 0.02), p=0.5),
        ],
        "histology": [
            A.D4(p=1),
            A.HEStain(p=0.5),
            A.ColorJitter(0.2, 0.2, 0.1, 0.05, p=0.8),
            A.GaussianBlur(sigma_limit=(0.1, 1.5), blur_limit=0, p=0.3),
            A.ImageCompression(quality_range=(60, 95), p=0.1),
        ],
        "mri": [
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=(-10, 10), p=0.3),
            A.RandomGamma((70, 150), p=0.5),
            A.RandomBrightnessContrast(0.25, 0.25, p=0.3),
            A.GaussianBlur(sigma_limit=(0.25, 1.0), blur_limit=0, p=0.3),
        ],
    }
    before = [A.Rotate((-180, 180), p=1.0)] if modality == "galaxy" else []
    chains = {}
    for kind, size, _ in PLAN:
        crop = A.RandomResizedCrop((size, size), scale=AREA[modality][kind])
        compose = A.Compose([*before, crop, *middle[modality], ToTensorV2()])
        chains[kind] = lambda image, compose=compose: compose(image=image)["image"]

    def start(image: np.ndarray) -> np.ndarray:
        if modality != "galaxy":
            return image
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return np.ascontiguousarray(_stretch(planes).numpy().transpose(1, 2, 0))

    return _views(chains, start)
