"""Views of plain images with albumentations, behind the seeded seam."""

import cv2

from data_adapters.augment.seam import A, Seeded
from data_adapters.base import Augment

BLUR_SIGMA = (0.1, 2.0)  # pixels


def build(name: str, *, size: int, area: tuple[float, float], colour: bool, mirror: float) -> Augment:
    """A random crop of `area`, resized by areas, then appearance.

    "natural" is LeJEPA's recipe for photographs (Balestriero and LeCun 2025): jitter .4/.4/.2/.1 with p .8, grey .2,
    blur .5, solarize .2. "moderate" leaves out grey and solarize, which destroy what colour and brightness say in
    most scientific images. `colour` tells 8-bit RGB: saturation, hue, grey and solarize exist only there; elsewhere
    the jitter changes brightness and contrast, of all channels alike.
    """
    chain = [
        A.RandomResizedCrop(size=(size, size), scale=area, interpolation=cv2.INTER_AREA),
        A.HorizontalFlip(p=mirror),
    ]
    if colour:
        chain.append(A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8))
    else:
        chain.append(A.RandomBrightnessContrast(brightness_limit=0.4, contrast_limit=0.4, p=0.8))
    if name == "natural" and colour:
        chain.append(A.ToGray(p=0.2))
    chain.append(A.GaussianBlur(sigma_limit=BLUR_SIGMA, blur_limit=0, p=0.5))
    if name == "natural" and colour:
        chain.append(A.Solarize(threshold_range=(0.5, 0.5), p=0.2))
    return Seeded(chain)
