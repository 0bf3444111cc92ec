"""The one-file example: short, runnable on both kinds of input, and the same loss as the library."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from lejepa_med.objective import LeJEPA, SIGReg, directions

PATH = Path(__file__).parents[2] / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal_example", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_needs_nothing_of_ours() -> None:
    text = PATH.read_text()
    assert len(text.splitlines()) < 150
    assert "import lejepa" not in text
    assert "from lejepa" not in text


@pytest.mark.parametrize("n_global", [2, 5])
def test_its_loss_and_gradient_equal_the_library(minimal: ModuleType, n_global: int) -> None:
    z = torch.randn(5, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    columns = directions(16, 64, seed=1, step=2, dtype=torch.float64)
    theirs = minimal.lejepa_loss(z, n_global, 0.05, columns)
    local_z = z[n_global:] if n_global < 5 else None
    ours = LeJEPA(0.05, SIGReg(slices=64))(z[:n_global], local_z, seed=1, step=2)
    torch.testing.assert_close(theirs, tuple(ours))
    torch.testing.assert_close(torch.autograd.grad(theirs[0], z), torch.autograd.grad(ours.loss, z))


def test_made_pictures_run_and_the_encoder_loads(
    minimal: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder.safetensors"
    losses = minimal.main(["--steps", "2", "--batch", "8", "--size", "16", "--slices", "8", "--out", str(out)])
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert capsys.readouterr().out.count("SIGReg") == 2
    encoder = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(out))
    saved = load_file(out)
    assert all(torch.equal(saved[name], value) for name, value in encoder.state_dict().items())


def test_a_folder_of_images_runs(minimal: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "deeper").mkdir()
    for name, shape in (
        ("a.png", (40, 50, 3)),
        ("b.JPG", (64, 36, 3)),
        ("deeper/c.jpeg", (33, 33)),
        ("d.png", (30, 90)),
    ):
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        image.save(tmp_path / name, format="JPEG" if name.lower().endswith(("jpg", "jpeg")) else "PNG")
    assert minimal.folder_pictures(tmp_path, 32).shape == (4, 3, 32, 32)
    losses = minimal.main(["--images", str(tmp_path), "--steps", "1", "--batch", "4", "--slices", "8"])
    assert math.isfinite(losses[0])


def test_an_empty_folder_is_named(minimal: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="found 0"):
        minimal.main(["--images", str(tmp_path)])
