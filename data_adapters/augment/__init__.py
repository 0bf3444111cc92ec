"""Seeded augmentation: domain operations, recipes of them, and the doors to albumentations and MONAI."""
