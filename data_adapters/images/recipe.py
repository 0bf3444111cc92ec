"""Views of plain images: a random crop without aliasing, then appearance.

Written on OpenCV and PyTorch directly: eight views of a 512 px picture then cost a third of the same chain in
albumentations, whose calls and area resizing dominate at these sizes (benchmarks/adapters.py).
"""

from data_adapters.augment.operations import Operation
from data_adapters.augment.picture import Blur, BrightnessContrast, ColourJitter, Grey, Mirror, Solarize


def operations(*, colour: bool, natural: bool, mirror: float) -> list[Operation]:
    """What happens to a crop of a picture.

    `natural` is LeJEPA's recipe for photographs (Balestriero and LeCun 2025): jitter .4/.4/.2/.1 with p .8, grey .2,
    blur .5, solarize .2. Without it grey and solarize are left out, which destroy what colour and brightness say in
    most scientific images.

    Args:
        colour: 8-bit RGB: saturation, hue, grey and solarize exist only there; elsewhere the jitter changes brightness
            and contrast, of all channels alike.
        natural: LeJEPA's recipe.
        mirror: probability of a mirrored view.
    """
    natural = natural and colour
    jitter: Operation = ColourJitter(p=0.8) if colour else BrightnessContrast(p=0.8)
    grey, solarize = ([Grey(p=0.2)], [Solarize(p=0.2)]) if natural else ([], [])
    return [Mirror(p=mirror), jitter, *grey, Blur(p=0.5), *solarize]
