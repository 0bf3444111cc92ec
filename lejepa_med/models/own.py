"""The user's own code, `./file.py:Class`: its file is read once, hashed and run.

That of a backbone travels in the encoder folder; that of a method is only recorded.
"""

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data_adapters.base import Spec
from lejepa_med.errors import ConfigError, EncoderError

# by use: its flag, and where a copy lies
FLAGS = {
    "backbone": ("--backbone", " (a copy lies in the run's encoder folder)"),
    "method": ("--objective.method", ""),
}
EXPECTED = "(N, D), or (N, D, places) or (N, tokens, D), of which the mean is taken"


class UntrustedCodeError(EncoderError):
    """An encoder folder with a Python file that nobody has allowed to run."""


@dataclass(frozen=True)
class Code:
    """The Python file of a backbone or a method as it was when it was read; what is run is what was hashed.

    Attributes:
        file: its name, without a folder.
        kind: the class in it, or a function that returns a module.
        source: its bytes.
        sha256: of these.
        make: the class.
    """

    file: str
    kind: str
    source: bytes
    sha256: str
    make: Callable[..., Any]

    @property
    def name(self) -> str:
        """`file.py:Class`, as an encoder folder has it."""
        return f"{self.file}:{self.kind}"

    @property
    def convolutional(self) -> bool:
        """Whether it gets a CNN's defaults; the class may say no with `convolutional = False`."""
        return bool(getattr(self.make, "convolutional", True))

    def arguments(self, spec: Spec, *, drop_path: float) -> dict[str, Any]:
        """`in_chans`, `img_size` and `drop_path_rate`, as far as the constructor names them.

        Raises:
            ConfigError: a drop path for a class that takes none.
        """
        accepted = inspect.signature(self.make).parameters
        if drop_path > 0 and "drop_path_rate" not in accepted:
            raise ConfigError(
                f"{self.name} takes no drop_path_rate, so it has no stochastic depth.",
                remedy=f"Leave out --model.drop-path, or add the argument drop_path_rate to {self.kind}.",
            )
        offered = {"in_chans": spec.channels, "img_size": spec.global_size, "drop_path_rate": drop_path}
        return {name: value for name, value in offered.items() if name in accepted}

    def build(self, args: dict[str, Any]) -> nn.Module:
        """The module with random weights.

        Raises:
            ConfigError: its constructor fails, or what it gives is no module.
        """
        given = ", ".join(f"{name}={value}" for name, value in args.items())
        try:
            module = self.make(**args)
        except Exception as error:  # whatever the file's author has written
            raise ConfigError(
                f"{self.kind}({given}) of {self.file} fails: {type(error).__name__}: {error}",
                remedy=f"Correct {self.file}. The class is called with in_chans and img_size where its constructor "
                "names them; every other argument needs a default.",
            ) from error
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{self.kind} of {self.file} gives a {type(module).__name__}, not a torch.nn.Module.",
                remedy=f"Give a class in {self.file} derived from torch.nn.Module, or a function that returns one.",
            )
        return module


def load_code(name: str, *, sha256: str | None = None, what: Literal["backbone", "method"] = "backbone") -> Code:
    """Read and run the file of `./file.py:Class`; the same content is run once in a process.

    Args:
        name: path of the file, a colon, and the class.
        sha256: that the file must have; it is not run otherwise.
        what: it is used as.

    Raises:
        ConfigError: no such file, another content, a file that fails, or no such class in it.
    """
    flag, kept = FLAGS[what]
    file, kind = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The {what}'s file {file} cannot be read ({error.strerror or type(error).__name__}).",
            remedy=f"Give its path and class: {flag} ./file.py:Class. A run that goes on (--resume) needs the "
            "file that it began with.",
        ) from error
    digest = hashlib.sha256(source).hexdigest()
    if sha256 is not None and digest != sha256:
        raise ConfigError(
            f"{file} is not the file that this run began with: its SHA-256 was {sha256[:16]}..., it is "
            f"{digest[:16]}... now.",
            remedy=f"Undo the changes in that file{kept}, or start a new run with another --out.",
        )
    if beside := _beside(source, file):
        raise ConfigError(
            f"{file} imports {', '.join(beside)}, which lies beside it and is not recorded with the run.",
            remedy=f"Put all of the {what} into {file.name}, or install the rest as a package.",
        )
    found = getattr(_run(source, digest, file), kind, None)
    if not callable(found):
        raise ConfigError(
            f"{file} has no class '{kind}'.", remedy=f"Give the name of a class in it: {flag} {file}:CLASS"
        )
    return Code(file=file.name, kind=kind, source=source, sha256=digest, make=found)


def _run(source: bytes, digest: str, file: Path) -> ModuleType:
    """The module of these bytes; not by Python's import, which would read the file again and write beside it."""
    name = f"lejepa_med_own_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(
            f"{file}{line} cannot be loaded: {type(error).__name__}: {error}",
            remedy=f"Correct what this shows: python {file}",
        ) from error
    return module


def _beside(source: bytes, file: Path) -> list[str]:
    """Modules that the file imports and that lie beside it; a file that is no Python has none."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    folder = file.resolve().parent
    return sorted(n for n in names if (folder / f"{n}.py").is_file() or (folder / n / "__init__.py").is_file())


def code_of(folder: Path, info: dict[str, Any], *, trusted: bool = True) -> Code | None:
    """The backbone's file of an encoder folder; None where the backbone is timm's or MONAI's.

    Args:
        folder: of the encoder.
        info: its lejepa_med.json.
        trusted: whether the file may be run.

    Raises:
        UntrustedCodeError: it is not trusted.
        EncoderError: its content is not what was saved.
    """
    recorded = info.get("code")
    if recorded is None:
        return None
    file = folder / Path(recorded["file"]).name
    if not trusted:
        raise UntrustedCodeError(
            f"The encoder in {folder} brings its own code ({file.name}), which is not run unasked.",
            remedy="Read that file, and allow it where you trust it.",
        )
    try:
        same = hashlib.sha256(file.read_bytes()).hexdigest() == recorded["sha256"]
    except OSError as error:
        raise EncoderError(
            f"{folder} lacks {file.name}, the code of its backbone ({type(error).__name__}).",
            remedy="Copy the whole encoder folder again.",
        ) from error
    if not same:
        raise EncoderError(
            f"{file} has changed since the encoder was saved: its SHA-256 is not the one in lejepa_med.json.",
            remedy="Copy the whole encoder folder again; to change the backbone, pretrain a new run with the new file.",
        )
    return load_code(f"{file}:{info['backbone'].rpartition(':')[2]}", sha256=recorded["sha256"])


def check(code: Code, module: nn.Module, args: dict[str, Any], spec: Spec) -> int:
    """Try the module on a small batch of each size; returns the length of its vectors.

    Raises:
        ConfigError: it fails, gives something else than vectors, or keeps numbers that its state dictionary lacks.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(
            f"{code.name} has no weights to train.",
            remedy="Keep its layers as attributes, nn.ModuleList or nn.Sequential, not in a plain list.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = code.build(args)
        other.load_state_dict(module.state_dict())
        training = module.training
        try:
            dims = _dims(code, module.eval(), other, spec)
        finally:
            module.train(training)
    if len(dims) > 1:
        raise ConfigError(
            f"{code.name} gives vectors of {' and '.join(map(str, sorted(dims)))} numbers for views of "
            f"{spec.global_size} and {spec.local_size}.",
            remedy="Take the mean over places, or train with views of one size: --views.n-local 0",
        )
    return dims.pop()


def _dims(code: Code, module: nn.Module, other: nn.Module, spec: Spec) -> set[int]:
    """Lengths of the vectors for views of each size; `other` has the same weights, and is used up."""
    dims = set()
    for size in sorted({spec.global_size} | ({spec.local_size} if spec.n_local else set()), reverse=True):
        pixels = torch.rand(2, spec.channels, *[size] * spec.dims, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            vectors, again, copy = (_vectors(code, net, pixels, spec) for net in (module, module, other.eval()))
        if not torch.allclose(vectors, again, rtol=1e-4, atol=1e-6):
            raise ConfigError(
                f"{code.name} gives other vectors for the same images in evaluation mode.",
                remedy="Draw nothing at random there: use nn.Dropout and the like, which stop in evaluation mode, or "
                "ask self.training.",
            )
        if not torch.allclose(vectors, copy, rtol=1e-4, atol=1e-6):
            raise ConfigError(
                f"{code.name} gives other vectors after its weights were saved and loaded: it holds numbers that its "
                "state_dict lacks.",
                remedy="Make them nn.Parameter, or call self.register_buffer(name, tensor).",
            )
        dims.add(vectors.shape[1])
        learnt = _vectors(code, other.train(), pixels, spec)  # training mode may differ: batch norm, dropout
        if not learnt.requires_grad:
            raise ConfigError(
                f"{code.name} gives vectors without gradients, so it cannot learn.",
                remedy=f"Take torch.no_grad, .detach() and NumPy out of forward() in {code.file}.",
            )
    return dims


def _vectors(code: Code, module: nn.Module, pixels: Tensor, spec: Spec) -> Tensor:
    shape = tuple(pixels.shape)
    try:
        out = module(pixels)
    except Exception as error:  # whatever the file's author has written
        raise ConfigError(
            f"{code.kind} of {code.file} fails on a batch of shape {shape}: {type(error).__name__}: {error}",
            remedy=f"Correct {code.file}: it gets (N, channels, {'depth, ' * (spec.dims - 2)}height, width). "
            "The channels come as in_chans, where the constructor has that argument. Other sizes: "
            "--views.global-size and --views.local-size.",
        ) from error
    got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
    right = isinstance(out, Tensor) and out.is_floating_point() and out.ndim in (2, 3, 2 + spec.dims)
    if not right or len(out) != len(pixels) or pooled(out).shape[1] < 2:
        raise ConfigError(
            f"{code.kind} of {code.file} gives {got} for a batch of shape {shape}; needed is one vector of at least 2 "
            f"numbers an image: {EXPECTED}.",
            remedy=f"Return that from forward() in {code.file}.",
        )
    vectors = pooled(out)
    if not vectors.isfinite().all():
        raise ConfigError(
            f"{code.kind} of {code.file} gives numbers that are not finite for a batch of shape {shape}.",
            remedy=f"Correct {code.file}; a common cause is a division by a standard deviation of 0.",
        )
    return vectors


def pooled(out: Tensor) -> Tensor:
    """(N, D) as it is; (N, tokens, D) and (N, D, *places) become their means, (N, D)."""
    if out.ndim == 2:
        return out
    return out.mean(1) if out.ndim == 3 else out.flatten(2).mean(2)
