"""LeJEPA pretraining on a lab's own archive, and what follows: embedding, probes, reports."""

__version__ = "0.1.0"
