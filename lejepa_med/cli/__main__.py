"""`python -m lejepa_med.cli` and torchrun."""

from lejepa_med.cli import main

main()
