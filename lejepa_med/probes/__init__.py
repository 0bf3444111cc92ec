"""Probes on frozen embeddings: fitted, cross-validated by group, saved, and applied."""
