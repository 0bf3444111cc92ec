"""An encoder's forward pass as the service runs it: device, threads, warm-up."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from app.settings import Settings
from data_adapters.errors import UserError
from lejepa_med.cpu import Threads
from lejepa_med.models.folder import VOLUMES, LoadedEncoder, embed_parts, exact_float32

WARM_UP = (1, 8, 32)  # images of one pass: a lone request, a small upload, a busy service


def choose_device(wanted: str) -> str:
    """'auto' becomes 'cuda' where there is a GPU, else 'cpu'.

    Raises:
        UserError: a GPU is asked for that is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"LEJEPA_DEVICE is '{wanted}', but PyTorch sees {torch.cuda.device_count()} GPUs here.",
            remedy="Set LEJEPA_DEVICE=auto, or check the driver (nvidia-smi) and the container's access to the GPU.",
        )
    return wanted


class ServedEncoder:
    """A loaded encoder with the threads of its passes. `embed` is called by one thread at a time."""

    def __init__(self, loaded: LoadedEncoder, settings: Settings) -> None:
        self.loaded = loaded
        self.views = loaded.formation.views
        self._batch_images = settings.batch_images
        self._device = torch.device(loaded.device)
        exact_float32()  # once for all threads: `embed_parts` restores what it finds, beside other encoders' passes
        on_cpu = self._device.type == "cpu"
        self._threads = Threads(settings.threads, active=on_cpu, most=settings.cores)

    @torch.inference_mode()
    def embed(self, items: Sequence[Tensor]) -> list[np.ndarray]:
        """(n_i, C, H, W) or (n_i, C, D, H, W) tensors -> one (n_i, dim) float32 array each."""
        self._threads.begin()
        parts = embed_parts(
            self.loaded.module,
            items,
            device=self._device,
            batch_size=self._batch_images,
            precision=self.loaded.precision,
        )
        self._threads.step(sum(map(len, items)))
        return [part.numpy() for part in parts]

    def warm_up_items(self) -> Iterator[Tensor]:
        """Blank items, one of each common batch size; their passes prepare kernels, memory and the queue's pace."""
        spec = self.loaded.adapter.spec
        most = min(self._batch_images, VOLUMES if spec.dims == 3 else self._batch_images)
        most = max(1, most // self.views)
        for images in sorted({min(images, most) for images in WARM_UP}):
            yield torch.zeros(images, spec.channels, *[spec.embed_size] * spec.dims)
