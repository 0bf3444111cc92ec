"""A brain MRI archive: NIfTI head phantoms at 2 mm, T1- and T2-weighted, with bias field and Rician noise.

Head size, tilt, contrast, bias and noise vary over ranges that the classes share; the class is what a lesion does to
the anatomy. Folders and names follow BIDS (sub-001/anat/sub-001_T1w.nii.gz).
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from examples.demo import phantom
from examples.demo.common import Label, Progress, generators, parallel, split_of, write_labels
from examples.demo.phantom import Array, Head

CLASSES: tuple[phantom.Lesion, ...] = ("none", "mass", "white_matter", "atrophy")
# Relative signal of each tissue at 1.5-3 T, spin-echo-like weightings; the mean of one subject's scanner.
SIGNAL = {
    "T1w": {
        "scalp": 0.95, "muscle": 0.42, "bone": 0.06, "marrow": 0.5, "csf": 0.16, "grey": 0.5, "white": 0.74,
        "lesion": 0.38, "oedema": 0.48, "rim": 0.9,
    },
    "T2w": {
        "scalp": 0.6, "muscle": 0.25, "bone": 0.04, "marrow": 0.35, "csf": 0.95, "grey": 0.55, "white": 0.4,
        "lesion": 0.76, "oedema": 0.72, "rim": 0.5,
    },
}  # fmt: skip


def acquire(head: Head, rng: np.random.Generator, *, weighting: str) -> Array:
    """One scan of a head: tissue signal, coil sensitivity (bias field), Rician noise; int16, arbitrary units."""
    signal = SIGNAL[weighting]
    image = np.zeros(phantom.SHAPE, np.float32)
    for name, share in zip(phantom.TISSUES, head.maps, strict=True):
        image += share * np.float32(signal[name] * np.exp(rng.normal(0, 0.06)))
    image *= 1 + 0.02 * phantom.spline_noise(rng, cell=9)  # tissue is not one grey value
    image *= np.exp(rng.uniform(0.05, 0.22) * phantom.spline_noise(rng, cell=90))
    noise = rng.uniform(0.012, 0.04)
    real = image + noise * rng.standard_normal(image.shape, np.float32)
    imaginary = noise * rng.standard_normal(image.shape, np.float32)
    gain = rng.uniform(300, 1500)
    scan: Array = np.clip(gain * np.sqrt(real**2 + imaginary**2), 0, np.iinfo(np.int16).max).astype(np.int16)
    return scan


def write_nifti(path: Path, volume: Array) -> None:
    """`volume` as NIfTI-1 with a RAS affine in mm (scanner coordinates)."""
    affine = np.diag([phantom.SPACING] * 3 + [1.0])
    affine[:3, 3] = phantom.ORIGIN
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def _age(rng: np.random.Generator, lesion: phantom.Lesion) -> int:
    return round(rng.normal(74, 5) if lesion == "atrophy" else rng.normal(45, 9))


@dataclass(frozen=True)
class _Job:
    folder: Path
    subject: str
    lesion: phantom.Lesion
    split: str
    facts: tuple[tuple[str, str], ...]
    rng: np.random.Generator


def _make(job: _Job) -> list[Label]:
    head = phantom.draw_head(job.rng, lesion=job.lesion)
    rows = []
    for weighting in SIGNAL:
        path = f"{job.subject}/anat/{job.subject}_{weighting}.nii.gz"
        write_nifti(job.folder / path, acquire(head, job.rng, weighting=weighting))
        rows.append(Label(path=path, label=job.lesion, group=job.subject, split=job.split, extra=job.facts))
    return rows


def make(
    folder: Path,
    *,
    n: int = 144,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `n` subjects (a T1w and a T2w scan of each) below `folder`, and labels.csv; returns the table's path.

    The subject is the group. Classes are equally frequent in `train` and in `val`. The table has sex, which no voxel
    tells, and age in years, of which atrophy tells something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    k = len(CLASSES)
    order = np.random.default_rng([seed, 1]).permutation(n)  # a subject's number must not tell its class
    facts = np.random.default_rng([seed, 2])
    jobs = [
        _Job(
            folder,
            f"sub-{order[i] + 1:03d}",
            CLASSES[i % k],
            split_of(i // k, -(-n // k)),
            (("sex", str(facts.choice(["F", "M"]))), ("age", str(_age(facts, CLASSES[i % k])))),
            child,
        )
        for i, child in enumerate(generators(seed, n))
    ]
    found = parallel(_make, jobs, workers=workers, progress=progress)
    return write_labels(folder, [row for rows in found for row in rows])
