"""The adapter printed in docs/adapters.md works as it stands, from a file, for a whole run."""

import re
from pathlib import Path

import numpy as np
import pytest

from data_adapters.errors import UserError
from lejepa_med.models.folder import load_encoder
from lejepa_med.training.loop import pretrain
from tests.lejepa_med.runs import tiny

DOCS = Path(__file__).parents[2] / "docs" / "adapters.md"


def test_the_printed_adapter_pretrains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(# sentinel\.py\n.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1 and len(blocks[0].splitlines()) < 50
    (tmp_path / "sentinel.py").write_text(blocks[0])
    archive = tmp_path / "archive"
    archive.mkdir()
    rng = np.random.default_rng(0)
    for number in range(16):
        np.save(archive / f"T32_{number}.npy", rng.integers(0, 9000, (40, 48, 5)).astype(np.uint16))
    np.save(archive / "short.npy", np.zeros((40, 48, 4), np.uint16))
    monkeypatch.chdir(tmp_path)
    config = tiny(archive, tmp_path / "run", modality="./sentinel.py:SentinelAdapter", train={"epochs": 1})
    assert pretrain(config).finished
    assert (tmp_path / "run" / "rejected.csv").read_text().splitlines()[1].startswith("short.npy,not 5 bands,")
    encoder = load_encoder(tmp_path / "run")
    assert encoder.info["spec"]["channels"] == 5
    monkeypatch.chdir(archive)  # the file is found from the description only where it was
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(tmp_path / "run")
