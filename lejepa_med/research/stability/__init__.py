"""The stability grid: the same archive pretrained shortly with every combination of a few settings."""
