"""The encoder folder: loads through timm alone, carries its preprocessing, and damage is noticed."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import data_adapters
from data_adapters.errors import UserError
from data_adapters.scan import scan_archive
from lejepa_med.errors import ConfigError, EncoderError
from lejepa_med.evaluation.features import embed_records
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import INFO, find_encoders, load_encoder, randomised, record_precision, save_encoder

ARCHITECTURES = ["resnet18", "vit_tiny_patch16_224", "convnextv2_atto", "swin_tiny_patch4_window7_224"]


def adapter_of(size: int = 32, **options: object) -> data_adapters.Adapter:
    return data_adapters.create("images", global_size=size, n_global=2, n_local=0, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_timm_loads_the_folder(name: str, tmp_path: Path) -> None:
    adapter = adapter_of(size=64)
    encoder = create_encoder(name, adapter.spec)
    save_encoder(encoder, adapter, tmp_path / "run" / "encoder")
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'encoder'}", pretrained=True).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalised = encoder.normalize(pixels)
    with torch.no_grad():
        assert torch.equal(model(normalised), encoder.backbone.eval()(normalised))
        assert torch.allclose(
            torch.from_numpy(load_encoder(tmp_path / "run").embed([pixels[:1], pixels[1:]])), encoder(pixels), atol=1e-5
        )


def test_channels_other_than_three(tmp_path: Path) -> None:
    adapter = adapter_of(channels=5)
    encoder = create_encoder("resnet18", adapter.spec)
    save_encoder(encoder, adapter, tmp_path / "five")
    assert timm.create_model(f"local-dir:{tmp_path / 'five'}", pretrained=True).conv1.weight.shape[1] == 5


def test_items_are_pooled_over_their_slices(tmp_path: Path) -> None:
    adapter = adapter_of()
    save_encoder(create_encoder("resnet18", adapter.spec), adapter, tmp_path / "e")
    loaded = load_encoder(tmp_path / "e")
    slices = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    single = loaded.embed([part[None] for part in slices])
    assert np.allclose(loaded.embed([slices])[0], single.mean(0), atol=1e-5)
    assert np.allclose(loaded.embed([slices, slices[:1]], batch_size=2)[1], single[0], atol=1e-5)


def test_saved_preprocessing_is_the_one_that_embeds(pictures: Path, tmp_path: Path) -> None:
    adapter = adapter_of()
    save_encoder(create_encoder("resnet18", adapter.spec), adapter, tmp_path / "e")
    loaded = load_encoder(tmp_path / "e")
    records = scan_archive(adapter, pictures).manifest.records()[:6]
    for record in records:
        assert torch.equal(loaded.adapter.prepare(record), adapter.prepare(record))
    one_by_one = np.concatenate([loaded.embed([adapter.prepare(record)]) for record in records])
    for workers, batch in ((0, 4), (2, 64)):
        vectors = [f.vector for f in embed_records(loaded, records, workers=workers, batch_size=batch)]
        assert np.allclose(np.stack(vectors), one_by_one, atol=1e-5)


def test_an_older_folder_survives_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_of()
    first, second = create_encoder("resnet18", adapter.spec), create_encoder("resnet18", adapter.spec)
    save_encoder(first, adapter, tmp_path / "e")
    before = load_encoder(tmp_path / "e").fingerprint
    monkeypatch.setattr("lejepa_med.models.architectures.timm.create_model", lambda *_a, **_k: first.backbone)
    with pytest.raises(EncoderError, match="read back"):  # timm "reads" other weights than were written
        save_encoder(second, adapter, tmp_path / "e")
    monkeypatch.undo()
    assert load_encoder(tmp_path / "e").fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_damage_and_mixtures_are_noticed(tmp_path: Path) -> None:
    adapter = adapter_of()
    for name in ("a", "b"):
        save_encoder(create_encoder("resnet18", adapter.spec), adapter, tmp_path / name)
    (tmp_path / "b" / "model.safetensors").write_bytes((tmp_path / "a" / "model.safetensors").read_bytes())
    with pytest.raises(EncoderError, match="do not match"):
        load_encoder(tmp_path / "b")
    with pytest.raises(EncoderError, match="not an encoder folder"):
        load_encoder(tmp_path)
    info = json.loads((tmp_path / "a" / "lejepa_med.json").read_text())
    info["adapter"]["version"] = 99
    (tmp_path / "a" / "lejepa_med.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="version 99"):
        load_encoder(tmp_path / "a")


def test_find_encoders_and_names(tmp_path: Path) -> None:
    adapter = adapter_of()
    encoder = create_encoder("resnet18", adapter.spec)
    save_encoder(encoder, adapter, tmp_path / "knee" / "encoder")
    save_encoder(encoder, adapter, tmp_path / "plain")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "lejepa_med.json").write_text("{}")
    found = find_encoders(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["knee/encoder", "plain"]
    assert [load_encoder(path).name for path in found] == ["knee", "plain"]


def test_randomised_is_another_encoder_of_the_same_kind(tmp_path: Path) -> None:
    adapter = adapter_of()
    save_encoder(create_encoder("resnet18", adapter.spec), adapter, tmp_path / "e")
    loaded = load_encoder(tmp_path / "e")
    control, again = randomised(loaded, seed=1), randomised(loaded, seed=1)
    pixels = [torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)]
    assert np.array_equal(control.embed(pixels), again.embed(pixels))
    assert not np.allclose(control.embed(pixels), loaded.embed(pixels))
    assert control.fingerprint not in (loaded.fingerprint, randomised(loaded, seed=2).fingerprint)


def test_unknown_or_unfit_architectures_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="resnet"):
        create_encoder("resnet19", adapter_of().spec)
    with pytest.raises(ConfigError, match="multiples of its patch"):
        create_encoder("vit_tiny_patch16_224", adapter_of(size=40).spec)


def test_precision_is_recorded_kept_by_later_checkpoints_and_told_by_the_fingerprint(tmp_path: Path) -> None:
    adapter = adapter_of()
    encoder = create_encoder("resnet10t", adapter.spec)
    save_encoder(encoder, adapter, tmp_path / "run" / "encoder")
    exact = load_encoder(tmp_path / "run")
    assert exact.precision == exact.info["precision"] == "float32"

    assert record_precision(tmp_path / "run", "bfloat16") == tmp_path / "run" / "encoder"
    save_encoder(encoder, adapter, tmp_path / "run" / "encoder")  # the run goes on
    rough = load_encoder(tmp_path / "run")
    assert (rough.precision, randomised(rough).precision) == ("bfloat16", "bfloat16")
    assert rough.fingerprint != exact.fingerprint
    assert "computed in bfloat16" in (tmp_path / "run" / "encoder" / "README.md").read_text()
    record_precision(tmp_path / "run", "float32")
    assert load_encoder(tmp_path / "run").fingerprint == exact.fingerprint

    info = tmp_path / "run" / "encoder" / INFO
    old = json.loads(info.read_text())
    del old["precision"]
    info.write_text(json.dumps(old))
    assert load_encoder(tmp_path / "run").fingerprint == exact.fingerprint  # tables from before stay usable
    info.write_text(json.dumps({**old, "precision": "int4"}))
    with pytest.raises(EncoderError, match=r"lejepa-med precision .* float32"):
        load_encoder(tmp_path / "run")


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_float32_vectors_do_not_depend_on_what_the_caller_has_set(dtype: torch.dtype | None, tmp_path: Path) -> None:
    adapter = adapter_of()
    save_encoder(create_encoder("vit_tiny_patch16_224", adapter.spec), adapter, tmp_path / "e")
    loaded = load_encoder(tmp_path / "e")
    items = [torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    expected = loaded.embed(items)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            assert np.array_equal(loaded.embed(items), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
