"""Histology: whole slides through openslide, and folders of tiles."""
