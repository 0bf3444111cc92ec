"""The LeJEPA objective: view invariance plus SIGReg, the test that pulls embeddings towards an isotropic Gaussian."""

from lejepa_med.objective.lejepa import LeJEPA, LeJEPALoss
from lejepa_med.objective.sigreg import FLOOR, SIGReg, directions, floor

__all__ = ["FLOOR", "LeJEPA", "LeJEPALoss", "SIGReg", "directions", "floor"]
