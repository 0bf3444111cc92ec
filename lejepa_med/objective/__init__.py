"""The LeJEPA objective: view invariance plus SIGReg, the test that pulls embeddings towards an isotropic Gaussian.

Beside it, each off by default: VISReg and the spectral entropy as other regularisers, and the losses of the baselines.
"""

from lejepa_med.objective.lejepa import LeJEPA, LeJEPALoss
from lejepa_med.objective.regularizers import SpectralEntropy, VISReg, variance_hinge
from lejepa_med.objective.sigreg import FLOOR, SIGReg, directions, floor

__all__ = [
    "FLOOR",
    "LeJEPA",
    "LeJEPALoss",
    "SIGReg",
    "SpectralEntropy",
    "VISReg",
    "directions",
    "floor",
    "variance_hinge",
]
