"""The ONNX file, run by onnxruntime alone, gives what `embed` and the probe give."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import data_adapters
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.export import graph
from lejepa_med.models.embed import EmbeddingTable, embed_archive
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import load_encoder, record_precision, save_encoder
from lejepa_med.models.formation import Formation
from lejepa_med.probes.probe import fit_probe
from tests.conftest import write_pictures
from tests.data.galaxy import write_pictures as write_galaxies
from tests.data.histology import write_tiles
from tests.data.mri import phantom, write_nifti

LABELS = {
    "classification": ["a", "b"] * 4,
    "multilabel": [["a"], ["a", "b"], ["b"], [], ["a"], ["a", "b"], ["b"], []],
    "regression": [1.0, 2.0, 3.5, 4.0, 1.5, 2.5, 3.0, 4.5],
}


def archive_of(modality: str, folder: Path) -> Path:
    folder.mkdir()
    if modality.startswith("mri"):
        for number in range(8):
            field = phantom(seed=number)
            shifted = np.roll(field, 2 + number, axis=number % 2)
            write_nifti(folder / f"{number}.nii.gz", field + np.float32(number / 4) * shifted)
    elif modality == "histology":
        write_tiles(folder, slides=[f"s{number}" for number in range(8)], per_slide=1)
    elif modality == "galaxy":
        write_galaxies(folder, 8)
    else:
        write_pictures(folder, count=8)
        (folder / "labels.csv").unlink()
    return folder


@pytest.mark.parametrize(
    ("modality", "backbone", "formed", "kind"),
    [
        ("galaxy", "resnet18", {"views": 8, "layers": 2}, "regression"),
        ("mri", "resnet18", {}, "classification"),
        ("mri3d", "monai:resnet10", {"views": 2}, None),
        ("histology", "vit_tiny_patch16_224", {"views": 2, "size": 48, "layers": 2}, "multilabel"),
    ],
)
def test_the_file_alone_equals_the_product(
    modality: str,
    backbone: str,
    formed: dict[str, int],
    kind: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = archive_of(modality, tmp_path / "archive")
    sizes = {"global_size": 32, "n_global": 2, "n_local": 0}
    adapter = data_adapters.create(modality, **sizes, **({"embed_size": formed["size"]} if "size" in formed else {}))
    formation = Formation(**{"size": 32, **formed})
    torch.manual_seed(1)
    made = create_encoder(backbone, adapter.spec, formation=formation)
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # timm begins with blocks that pass nothing on
            torch.nn.init.ones_(layer.weight)
    save_encoder(made, adapter, tmp_path / "run" / "encoder")
    encoder = load_encoder(tmp_path / "run")
    manifest = scan_archive(encoder.adapter, archive).manifest
    embed_archive(encoder, manifest, tmp_path / "table")
    table = EmbeddingTable.open(tmp_path / "table")
    given = []
    if kind is not None:
        probe = fit_probe(table.vectors, LABELS[kind], table.groups, encoder=encoder.fingerprint, folds=2)  # type: ignore[arg-type]
        probe.save(tmp_path / "probe")
        given = ["--probe", str(tmp_path / "probe")]
    out = tmp_path / "model.onnx"
    main(["export", str(tmp_path / "run"), "--out", str(out), "--images", str(archive), *given])
    assert "parity: largest difference" in capsys.readouterr().out
    assert onnx.load(out).opset_import[0].version == graph.OPSET
    running = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    facts = running.get_modelmeta().custom_metadata_map
    assert facts["encoder_fingerprint"] == encoder.fingerprint and json.loads(facts["preprocessing"])
    assert str(tmp_path).encode() not in out.read_bytes() and b"site-packages" not in out.read_bytes()
    items = [encoder.adapter.prepare(manifest.record(row)) for row in range(8)]
    together = torch.stack(items) if len({len(item) for item in items}) == 1 else items[0][None]
    vectors, *answers = running.run(None, {"pixels": together.numpy()})
    scale = np.abs(table.vectors).max()
    assert np.abs(vectors - table.vectors[: len(vectors)]).max() < 1e-4 * scale
    assert np.abs(table.vectors[0] - table.vectors[1]).max() > 1e-3 * scale  # the items are not all alike
    if kind is None:
        return
    assert json.loads(facts["classes"]) == list(probe.classes)
    if kind == "regression":
        expected = probe.head.ridge.logits(table.vectors)[:, 0]  # type: ignore[union-attr]
    else:
        expected = probe.head.probabilities(table.vectors)  # type: ignore[union-attr]
    np.testing.assert_allclose(answers[0], expected[: len(vectors)], atol=1e-4)


def test_what_differs_or_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = data_adapters.create("images", global_size=32, n_global=2, n_local=0)
    run, out = tmp_path / "run", tmp_path / "model.onnx"
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, run / "encoder")

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["export", str(run), "--out", *arguments])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        return capsys.readouterr().err

    assert "--images FOLDER" in refused(str(out))
    assert "ends in no format" in refused(str(tmp_path / "model.bin"))
    images = ["--images", str(pictures)]
    real = graph.fixed_views
    with monkeypatch.context() as patch:  # a graph that sees other pixels than the encoder
        patch.setattr(graph, "fixed_views", lambda pixels, views: real(pixels // 2, views))
        assert "differs from PyTorch" in refused(str(out), *images)
    record_precision(run, "bfloat16")
    assert "lejepa-med precision RUN float32" in refused(str(out), *images)
