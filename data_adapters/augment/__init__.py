"""Seeded augmentation: the seam to albumentations, and the domain operations that libraries lack."""
