"""What this installation can do: versions, devices, readers of each modality, disk, salt. It asks no network."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from data_adapters import registry
from data_adapters.cache import default_folder
from data_adapters.errors import UserError
from data_adapters.identity import salt_file
from data_adapters.machine import Machine, free_cores

State = Literal["ok", "note", "missing", "broken"]
PACKAGE = "lejepa-med"
EXTRAS = ("mri", "histology", "galaxy", "serve")


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
    elif (extra := registry.BUILT_IN.get(modality, ".").split(".")[1]) in EXTRAS:  # its folder, so mri for mri3d
        yield from _packages(modality, sections.get(extra, ()), extra=extra)
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


def _packages(section: str, requirements: Iterable[Requirement], *, extra: str = "") -> Iterator[Finding]:
    whole = "pip install lejepa-med" if section == "core" else f"pip install 'lejepa-med[{extra or section}]'"
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
    module = _module(requirement.name)
    if module is None:
        return Finding(section, requirement.name, "ok", f"{version}, not imported: its metadata names no module")
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises what it likes
        detail = f"{version} cannot be imported ({type(error).__name__}: {error})"
        again = f"pip install --force-reinstall '{requirement.name}=={version}'"
        return Finding(section, requirement.name, "broken", detail, again)
    return Finding(section, requirement.name, "ok", version)


def _module(package: str) -> str | None:
    """The module to import of an installed package: pynrrd's is nrrd. None where its metadata lists none."""
    installed = importlib.metadata.distribution(package)
    listed = (installed.read_text("top_level.txt") or "").split()
    files = [file.parts for file in installed.files or () if file.suffix in (".py", ".so", ".pyd")]
    found = {*listed, *(parts[0] if len(parts) > 1 else parts[0].partition(".")[0] for parts in files)}
    public = sorted(name for name in found if name.isidentifier() and not name.startswith("_"))
    # some packages also install a top-level `docs` or `tests`, so take the module whose name is most like the package's
    return max(public, key=lambda name: SequenceMatcher(None, name, package.lower()).ratio(), default=None)


def _system() -> Iterator[Finding]:
    yield Finding("system", "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _devices()
    yield _cache()
    yield _salt()


def _devices() -> Iterator[Finding]:
    try:
        import torch

        from lejepa_med.training.device import cpu_has_bf16
    except Exception:  # said above, with its reason
        return
    bf16 = "bf16 in hardware" if cpu_has_bf16() else "bf16 is emulated, so 32-bit is used"
    yield Finding("system", "cpu", "ok", f"{_cores()}, {bf16}")
    if not torch.cuda.is_available():
        why, check = "no CUDA device is seen", "check that nvidia-smi lists it"
        if torch.version.cuda is None:
            why, check = "PyTorch was built without CUDA", "install PyTorch with CUDA (https://pytorch.org/get-started)"
        remedy = f"If this machine has an NVIDIA GPU, {check}. Without one, train small models on the CPU."
        yield Finding("system", "gpu", "note", why, remedy)
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield Finding("system", f"gpu {index}", "ok", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {bf16}")


def _cores() -> str:
    machine = Machine()
    there = os.cpu_count() or machine.cores
    limited = f" of {there} (limited by CPU affinity or the container)" if machine.cores < there else ""
    return f"{machine.cores}{limited} cores, {free_cores(machine=machine)} free now"


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
    return Finding("system", "salt", "ok", f"{file}, readable by you alone")


def _private(file: Path) -> bool:
    return not file.stat().st_mode & 0o077
