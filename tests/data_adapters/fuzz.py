"""Damages miniature files of every format and reads each damaged copy in a process of its own.

`python -m tests.data_adapters.fuzz FOLDER ROUNDS` prints one JSON line a case that ended in another way than "read" or
"refused", and then the counts. A case that kills its process or does not end names the signal.
"""

import json
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image

import data_adapters
from data_adapters.base import Record, Rejected
from data_adapters.errors import BadFileError
from data_adapters.quiet import quiet_readers
from tests.data import galaxy, histology, images, mri

SECONDS = 20  # of CPU time for one case; whole files take a fraction of one
MEMORY = 16 << 30  # bytes of address space: a header that claims more must be refused, not believed
OPTIONS = {
    "mri": {"global_size": 32, "slices": 3},
    "galaxy": {"global_size": 32, "kind": "flux", "bands": "g,r,z", "scales": (1.0, 1.0, 1.0)},
    "picture": {"global_size": 32, "kind": "picture", "bands": "r,g,b"},
    "histology": {"global_size": 32, "local_size": 16, "tile_px": 64, "tiles": 2, "n_local": 0},
    "images": {"global_size": 32, "intensity": "percentile"},
}


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(key of OPTIONS, file) for every format, whole and small."""
    volume, slice_ = mri.phantom(), mri.slice_images(mri.phantom(), "axial")[10]
    for name, kind in (("a.nii", nib.Nifti1Image), ("b.nii.gz", nib.Nifti2Image), ("c.mgz", nib.MGHImage)):
        yield "mri", mri.write_nifti(folder / name, volume.astype(np.float32), kind=kind)
    yield "mri", mri.save_dicom(folder / "d.dcm", mri.dataset(slice_))
    yield "mri", mri.save_dicom(folder / "e.dcm", mri.dataset(slice_), compress=True)
    yield "mri", mri.write_enhanced(folder / "f.dcm", volume[:, :, :6])
    yield "galaxy", galaxy.write_cube(folder / "g.fits", galaxy.source(32))
    yield "galaxy", galaxy.write_band_extensions(folder / "h.fits", galaxy.source(32))
    yield "galaxy", galaxy.write_hdf5(folder / "i.h5", rows=2, size=32, channels_first_flux=True)
    yield "picture", galaxy.write_hdf5(folder / "j.h5", rows=2, size=32)
    picture, _ = histology.he_picture(width=512, height=448)
    yield "histology", histology.write_pyramid(folder / "k.tif", picture, levels=2)
    yield "histology", histology.write_svs(folder / "l.svs", picture)
    (folder / "wsi").mkdir()
    yield "histology", histology.write_dicom_slide(folder / "wsi", picture)[0]
    yield "histology", images.write_image(folder / "m.png", picture[200:264, 200:264])
    scene = images.scene(32, 40)
    for suffix in (".png", ".jpg", ".tif", ".webp", ".gif", ".jp2", ".avif", ".bmp", ".ppm"):
        yield "images", images.write_image(folder / f"n{suffix}", scene)
    yield "images", images.write_deep_png(folder / "o.png", images.scene(32, 40, dtype=np.uint16))
    yield "images", images.write_tiff(folder / "p.tif", images.scene(32, 40, dtype=np.uint16), compression="deflate")
    np.save(folder / "q.npy", scene)
    yield "images", folder / "q.npy"
    Image.fromarray(scene).save(folder / "r.tif", compression="jpeg")
    yield "images", folder / "r.tif"


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, or some bytes of the head, or of any place, replaced, or a stretch of zeros."""
    way = rng.integers(4)
    if way == 0:
        return content[: rng.integers(len(content))]
    data = np.frombuffer(content, np.uint8).copy()
    if way == 3:
        start = rng.integers(len(data))
        data[start : start + rng.integers(1, 2000)] = 0
        return data.tobytes()
    places = rng.integers(min(len(data), 600 if way == 1 else len(data)), size=rng.integers(1, 12))
    data[places] = rng.integers(256, size=len(places))
    return data.tobytes()


def read(key: str, path: Path) -> str:
    """The outcome of scan and prepare: read, refused, or what went wrong."""
    adapter = data_adapters.create("galaxy" if key == "picture" else key, **OPTIONS[key])
    outcome = "refused"
    for found in adapter.scan(path):
        if isinstance(found, Rejected):
            if not found.reason or not found.remedy:
                return f"no reason or remedy: {found.reason}"
            continue
        try:
            adapter.verify(found)
            pixels = adapter.prepare(found)
        except BadFileError as error:
            if not error.cause or str(path) in error.cause + error.remedy:
                return f"a path or nothing in: {error.cause}"
            continue
        values = pixels / 255 if pixels.dtype == torch.uint8 else pixels
        if not (isinstance(found, Record) and values.isfinite().all() and values.min() >= 0 and values.max() <= 1):
            return "values outside [0, 1]"
        outcome = "read"
    return outcome


def apart(work: Callable[[], str]) -> str:
    """What `work` returns in a child process, or how the child ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            outcome = work()
        except BaseException as error:
            outcome = f"raised {type(error).__name__}: {error}"
        os.write(writing, outcome.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if status == 0 else f"killed by {signal.Signals(-status).name}"


def main(folder: Path, rounds: int) -> None:
    """Every file whole, then `rounds` damaged copies of each, the same ones in each run."""
    quiet_readers()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    for number, (key, path) in enumerate(files(folder)):
        content = path.read_bytes()
        for seed in range(rounds + 1):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                copy = Path(place, path.name)
                copy.write_bytes(damaged(content, np.random.default_rng((number, seed))) if seed else content)
                # the whole file in this process, which imports the readers once for all the children
                outcome = apart(partial(read, key, copy)) if seed else read(key, copy)
            if outcome not in ("read", "refused") or (seed == 0 and outcome != "read"):
                print(json.dumps({"file": path.name, "seed": seed, "outcome": outcome}), flush=True)
            counts[outcome.split(":")[0]] += 1
    print(json.dumps({"counts": counts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
