"""What a study needs and a run does not: baselines to compare with, further normality tests, the stability grid.

The rest of lejepa_med finds all of it by name, as it finds a plug-in, and imports nothing from here.
"""
