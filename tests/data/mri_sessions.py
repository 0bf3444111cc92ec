"""Sessions of several sequences, by BIDS names."""

from pathlib import Path
from typing import Any

from tests.data.mri import phantom, write_nifti

ALL = ["T1w", "T2w", "FLAIR"]
SUFFIXES = [*ALL, "bold", "PDw"]  # a seed of its own for each
SHAPE = (20, 24, 16)


def write_session(
    root: Path, name: str, suffixes: list[str], *, session: str = "", shape: tuple[int, ...] = SHAPE, **options: Any
) -> list[Path]:
    """One NIfTI file of `shape` for each suffix, with textures of their own; `options` are those of `write_nifti`."""
    middle = f"_ses-{session}" if session else ""
    return [
        write_nifti(
            root / name / f"{name}{middle}_{suffix}.nii.gz",
            phantom(seed=SUFFIXES.index(suffix), shape=shape),
            **options,
        )
        for suffix in suffixes
    ]
