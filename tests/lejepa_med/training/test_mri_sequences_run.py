"""Several MRI sequences of a session through scan, pretrain and embed, as channels and as paired views."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_adapters.scan import scan_archive
from lejepa_med.models.embed import EmbeddingTable, embed_archive
from lejepa_med.models.folder import load_encoder
from lejepa_med.training.loop import pretrain
from tests.data.mri import phantom, write_nifti
from tests.lejepa_med.runs import losses, tiny

SEQUENCES = ["T1w", "T2w", "FLAIR"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight subjects of three sequences on one grid; the last lacks FLAIR."""
    root = tmp_path_factory.mktemp("bids")
    for subject in range(8):
        for index, suffix in enumerate(SEQUENCES if subject < 7 else SEQUENCES[:2]):
            name = f"sub-{subject:02d}"
            array = phantom(seed=3 * subject + index, shape=(20, 24, 16))
            write_nifti(root / name / "anat" / f"{name}_{suffix}.nii.gz", array)
    return root


SLICES = {"modality": "mri", "train": {"epochs": 2, "batch_size": 8}}
CUBES = {
    "modality": "mri3d",
    "model": {"backbone": "monai:resnet10"},
    "views": {"n_local": 1, "global_size": 24, "local_size": 16},
    "train": {"epochs": 1, "batch_size": 4},
}


@pytest.mark.parametrize(
    ("combine", "channels", "settings"),
    [
        pytest.param("channels", 3, SLICES, marks=pytest.mark.slow),
        ("views", 1, SLICES),
        ("channels", 3, CUBES),
        pytest.param("views", 1, CUBES, marks=pytest.mark.slow),
    ],
)
def test_scan_pretrain_embed(
    archive: Path, tmp_path: Path, combine: str, channels: int, settings: dict[str, Any]
) -> None:
    options = {"sequences": SEQUENCES, "combine": combine}
    if settings["modality"] == "mri":
        options["slices"] = 2
    config = tiny(archive, tmp_path / "run", data={"options": options}, **settings)
    result = pretrain(config)
    assert result.finished and len(losses(tmp_path / "run")) == result.steps
    encoder = load_encoder(tmp_path / "run" / "encoder")
    assert encoder.adapter.spec.channels == channels and encoder.adapter.options.combine == combine
    manifest = scan_archive(encoder.adapter, archive).manifest
    assert len(manifest) == 8
    embed_archive(encoder, manifest, tmp_path / "table")
    table = EmbeddingTable.open(tmp_path / "table")
    expected = encoder.embed([encoder.adapter.prepare(record) for record in manifest.records()])
    assert len(set(table.groups)) == 8
    np.testing.assert_allclose(table.vectors, expected, atol=1e-5)
