"""What a study needs and a run does not: baselines to compare with, further normality tests, the stability grid.

The rest of lejepa_med finds all of it by name, as it finds a plug-in, and imports nothing from here.
"""

METHODS = {
    "vicreg": "lejepa_med.research.contrast:VICRegSettings",
    "simclr": "lejepa_med.research.contrast:SimCLRSettings",
    "barlow_twins": "lejepa_med.research.contrast:BarlowTwinsSettings",
    "byol": "lejepa_med.research.teachers:BYOLSettings",
    "dino": "lejepa_med.research.teachers:DINOSettings",
}
"""Class of the settings of each method, as `module:Class`."""

TESTS = {
    "watson": "lejepa_med.research.normality:Watson",
    "shapiro_wilk": "lejepa_med.research.normality:ShapiroWilk",
    "jarque_bera": "lejepa_med.research.normality:JarqueBera",
    "moments": "lejepa_med.research.normality:Moments",
    "vcreg": "lejepa_med.research.normality:VCReg",
    "entropy": "lejepa_med.research.normality:Entropy",
    "nll": "lejepa_med.research.normality:NLL",
    "bhep": "lejepa_med.research.normality:BHEP",
    "henze_zirkler": "lejepa_med.research.normality:HenzeZirkler",
}
"""Class of each normality test, as `module:Class`; `lejepa_med.objective.normality.make_test` builds them."""
