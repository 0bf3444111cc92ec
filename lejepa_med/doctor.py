"""What this installation can do: versions, devices, readers of each modality, disk, salt. It asks no network."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from data_adapters import registry
from data_adapters.cache import default_folder
from data_adapters.errors import UserError
from data_adapters.identity import salt_file

State = Literal["ok", "note", "missing", "broken"]
PACKAGE = "lejepa-med"
EXTRAS = ("mri", "histology", "galaxy", "serve", "bench")
# Where the imported name is not the package's with underscores.
MODULES = {
    "lightning-fabric": "lightning_fabric",
    "opencv-python-headless": "cv2",
    "openslide-bin": "openslide_bin",
    "openslide-python": "openslide",
    "pillow": "PIL",
    "pylibjpeg-openjpeg": "openjpeg",
    "python-gdcm": "gdcm",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `section`: core, an extra, a plug-in, or system."""

    section: str
    name: str
    state: State
    detail: str
    remedy: str = ""


def examine(modality: str | None = None) -> Iterator[Finding]:
    """Findings, one by one, since importing what is examined takes a while.

    Args:
        modality: check the core and this modality alone.

    Raises:
        UserError: there is no such modality.
    """
    sections = _sections()
    yield from _packages("core", sections.get("core", ()))
    if modality is None:
        for extra in EXTRAS:
            yield from _packages(extra, sections.get(extra, ()))
        yield Finding("images", "images", "ok", "needs nothing beyond the core")
    elif modality in EXTRAS and modality in registry.BUILT_IN:
        yield from _packages(modality, sections.get(modality, ()))
    else:
        kind = registry.load_class(modality)
        yield Finding(modality, modality, "ok", f"{kind.__name__} can be loaded")
    yield from _system()


def failed(findings: Iterable[Finding], *, modality: str | None = None) -> bool:
    """Whether the core is broken, or the `modality` that was asked for."""
    return any(f.state in ("missing", "broken") and f.section in ("core", modality) for f in findings)


def _sections() -> dict[str, list[Requirement]]:
    """The requirements by extra; those of every installation under "core"."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        lines = _of_checkout()
    sections: dict[str, list[Requirement]] = {name: [] for name in ("core", *EXTRAS)}
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == PACKAGE:  # extras that are made of others
            continue
        for name in sections:
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": name})
            if wanted and (requirement.marker is None) == (name == "core"):
                sections[name].append(requirement)
    return sections


def _of_checkout() -> list[str]:
    """The requirements of a checkout that is used without being installed."""
    file = Path(__file__).parents[1] / "pyproject.toml"
    if not file.is_file():
        raise UserError(
            f"The package {PACKAGE} is not installed, so its requirements are unknown.",
            remedy=f"Install it with: pip install {PACKAGE}",
        )
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = [f"{line}; extra == '{name}'" for name in EXTRAS for line in project["optional-dependencies"][name]]
    return [*project["dependencies"], *extras]


def _packages(section: str, requirements: Iterable[Requirement]) -> Iterator[Finding]:
    whole = "pip install lejepa-med" if section == "core" else f"pip install 'lejepa-med[{section}]'"
    for requirement in requirements:
        yield check_package(section, requirement, install=whole)


def check_package(section: str, requirement: Requirement, *, install: str) -> Finding:
    """Whether a package is there, new enough, and can be imported; `install` is the command that brings it."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(section, requirement.name, "missing", "not installed", install)
    if not requirement.specifier.contains(version, prereleases=True):
        bound = requirement.specifier
        newer = f"pip install '{requirement.name}{bound}'"
        return Finding(section, requirement.name, "broken", f"{version}, but {bound} is needed", newer)
    try:
        importlib.import_module(MODULES.get(requirement.name.lower(), requirement.name.replace("-", "_")))
    except Exception as error:  # a broken binary raises what it likes
        detail = f"{version} cannot be imported ({type(error).__name__}: {error})"
        again = f"pip install --force-reinstall '{requirement.name}=={version}'"
        return Finding(section, requirement.name, "broken", detail, again)
    return Finding(section, requirement.name, "ok", version)


def _system() -> Iterator[Finding]:
    yield Finding("system", "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _devices()
    yield _cache()
    yield _salt()


def _devices() -> Iterator[Finding]:
    try:
        import torch

        from lejepa_med.training.precision import cpu_has_bf16
    except Exception:  # said above, with its reason
        return
    bf16 = "bf16 in hardware" if cpu_has_bf16() else "bf16 is emulated, so 32-bit is used"
    yield Finding("system", "cpu", "ok", f"{os.cpu_count()} cores, {bf16}")
    if not torch.cuda.is_available():
        why = "PyTorch was built without CUDA" if torch.version.cuda is None else "no CUDA device is seen"
        yield Finding("system", "gpu", "note", why, "Training on a CPU works, with small models and pictures.")
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield Finding("system", f"gpu {index}", "ok", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {bf16}")


def _cache() -> Finding:
    folder = default_folder()
    if folder is None:
        return Finding("system", "cache", "note", "off: volumes are decoded at each reading", "Unset LEJEPA_CACHE.")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free / 2**30
    if not os.access(there, os.W_OK):
        return Finding("system", "cache", "note", f"{folder} cannot be written", "Set LEJEPA_CACHE to another folder.")
    if free < 10:
        remedy = "A decoded volume takes 10 to 50 MB. Free space, or set LEJEPA_CACHE to another folder."
        return Finding("system", "cache", "note", f"{folder}: {free:.1f} GiB free", remedy)
    return Finding("system", "cache", "ok", f"{folder}: {free:,.0f} GiB free")


def _salt() -> Finding:
    """Where the secret of the pseudonyms comes from; never the secret, and none is made."""
    if os.environ.get("LEJEPA_SALT"):
        return Finding("system", "salt", "ok", "from LEJEPA_SALT")
    file = salt_file()
    if not file.is_file():
        return Finding("system", "salt", "note", "none yet", "The first scan makes it. Back it up: ids depend on it.")
    if not _private(file):
        return Finding("system", "salt", "note", f"{file} can be read by others", f"chmod 600 {file}")
    return Finding("system", "salt", "ok", f"{file}, for your eyes only")


def _private(file: Path) -> bool:
    return not file.stat().st_mode & 0o077
