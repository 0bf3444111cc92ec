"""A moving average of the encoder's weights, for evaluation only: it never enters the loss."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lejepa_med.models.encoder import Encoder
from lejepa_med.training.sharding import whole

UPDATES = "updates"  # the count, beside the tensors in a checkpoint


class WeightAverage:
    """Exponential moving average of weights and floating-point buffers (batch-norm statistics).

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run's average forgets its random start.
    Counters are copied. LeJEPA needs no average (arXiv 2511.08544 uses one, as SWA, for some ViT rows only).
    """

    def __init__(self, encoder: Encoder, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in encoder.backbone.state_dict().items()}

    @torch.no_grad()
    def update(self, encoder: Encoder) -> None:
        """Take in the weights after an optimiser step."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        live = encoder.backbone.state_dict()
        floating = [name for name in live if live[name].is_floating_point()]
        mine, its = [_local(self.state[name]) for name in floating], [_local(live[name]) for name in floating]
        torch._foreach_lerp_(mine, its, weight)
        for name in live.keys() - set(floating):
            self.state[name].copy_(live[name])

    def state_dict(self) -> dict[str, Tensor]:
        """For the checkpoint: whole tensors, also where the model is sharded; called by all ranks."""
        tensors = {name: whole(value) for name, value in self.state.items()}
        return {**tensors, UPDATES: torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """From the checkpoint."""
        self.updates = int(state[UPDATES])
        for name, value in self.state.items():
            saved = state[name].to(value.device)
            if isinstance(value, DTensor):
                saved = distribute_tensor(saved, value.device_mesh, value.placements)
            value.copy_(saved)


def _local(value: Tensor) -> Tensor:
    """This process's part of a sharded tensor; an average of parts needs no other."""
    return value.to_local() if isinstance(value, DTensor) else value
