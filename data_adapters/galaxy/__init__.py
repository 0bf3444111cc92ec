"""Galaxies: FITS and HDF5 flux, or pictures, with a recipe that only changes what the sky and the telescope change."""
