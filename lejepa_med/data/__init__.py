"""Manifest rows become batches of views, reproducibly."""
