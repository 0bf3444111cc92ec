"""What is trained: an encoder with the heads and the loss of one pretraining method. LeJEPA is the default."""

from lejepa_med.methods.base import Method, StepOutput
from lejepa_med.methods.build import build_method
from lejepa_med.methods.lejepa import LeJEPAMethod

__all__ = ["LeJEPAMethod", "Method", "StepOutput", "build_method"]
