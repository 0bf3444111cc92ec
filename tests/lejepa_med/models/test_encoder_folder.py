"""The encoder folder: loads through timm alone, carries its preprocessing, and damage is noticed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import data_adapters
from data_adapters.errors import UserError
from data_adapters.scan import scan_archive
from lejepa_med.errors import ConfigError, EncoderError
from lejepa_med.models.embed import embed_records
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


ADAPTED = ["resnet18", "vit_tiny_patch16_224", "convnextv2_atto", "regnety_002", "mobilenetv3_small_050", "levit_128s"]


@pytest.mark.parametrize(("name", "channels"), list(zip(ADAPTED, (5, 3, 3, 1, 2, 4), strict=True)))
def test_timm_gives_the_folder_a_head_and_other_channels(name: str, channels: int, tmp_path: Path) -> None:
    adapter = adapter_of(size=64, channels=channels)
    encoder = create_encoder(name, adapter.spec)
    save_encoder(encoder, adapter, tmp_path / "e")
    config = json.loads((tmp_path / "e" / "config.json").read_text())["pretrained_cfg"]
    own = timm.get_pretrained_cfg(name)
    assert config["classifier"] == (list(own.classifier) if isinstance(own.classifier, tuple) else own.classifier)
    saved = encoder.backbone.state_dict()

    def made(**arguments: object) -> torch.nn.Module:
        return timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, **arguments).eval()

    def changed(model: torch.nn.Module) -> set[str]:
        """Names of saved weights that the model lacks or holds with other values."""
        found = model.state_dict()
        return {key for key in saved if key not in found or not torch.equal(found[key], saved[key])}

    pixels = torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedded = encoder.eval().backbone(pixels)
        for arguments in ({"num_classes": 0}, {"drop_path_rate": 0.1}):
            model = made(**arguments)
            assert not changed(model) and torch.equal(model(pixels), embedded)
        headed = made(num_classes=5)
        assert not changed(headed) and headed(pixels).shape == (2, 5)
        headed.reset_classifier(0)
        assert torch.equal(headed(pixels), embedded)
        unpooled = made(global_pool="")
        assert not changed(unpooled) and unpooled(pixels).ndim > 2
        maps = made(features_only=True)(pixels)
        assert len(maps) > 1 and all(len(part) == 2 for part in maps)
        for count in {1, 3, 4, 5} - {channels}:
            other = made(in_chans=count, num_classes=5)
            first = [own.first_conv] if isinstance(own.first_conv, str) else own.first_conv
            assert changed(other) == {f"{layer}.weight" for layer in first}
            assert other(torch.rand(2, count, 64, 64)).shape == (2, 5)
        # timm sums the kernels of all channels for one: grey pixels give what they gave in every channel
        grey = pixels[:, :1]
        alike = encoder.backbone(grey.expand(-1, channels, -1, -1))
        assert torch.allclose(made(in_chans=1)(grey), alike, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"registers": 4}])
def test_timm_gives_a_transformer_another_size(options: dict[str, int], tmp_path: Path) -> None:
    adapter = adapter_of(size=64)
    encoder = create_encoder("vit_tiny_patch16_224", adapter.spec, **options)
    save_encoder(encoder, adapter, tmp_path / "e")
    model = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True, img_size=96, num_classes=5).eval()
    assert model(torch.rand(1, 3, 96, 96)).shape == (1, 5)
    assert torch.equal(model.patch_embed.proj.weight, encoder.backbone.patch_embed.proj.weight)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnextv2_atto"])
def test_the_loaded_model_can_be_traced(name: str, tmp_path: Path) -> None:
    adapter = adapter_of(size=64)
    save_encoder(create_encoder(name, adapter.spec), adapter, tmp_path / "e")
    model = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(pixels)
        assert torch.allclose(torch.jit.trace(model, pixels)(pixels), wanted, atol=1e-5)
        assert torch.allclose(torch.export.export(model, (pixels,)).module()(pixels), wanted, atol=1e-5)
    size = {"img_size": 64} if name.startswith("vit") else {}
    again = timm.create_model(name, num_classes=0, checkpoint_path=tmp_path / "e" / "model.safetensors", **size)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_the_fine_tuning_of_the_readme_runs(tmp_path: Path) -> None:
    document = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "num_classes=5" in block]
    adapter = adapter_of(channels=4)
    save_encoder(create_encoder("resnet18", adapter.spec), adapter, tmp_path / "heads" / "encoder")
    labels = torch.arange(10) % 5
    images = torch.rand(10, 4, 32, 32) * 0.1 + labels.view(-1, 1, 1, 1) * 0.2
    names: dict[str, Any] = {"batches": [(images, labels)] * 20}
    exec(code.replace("runs/heads", str(tmp_path / "heads")), names)
    assert names["mean"].flatten().tolist() == pytest.approx(adapter.spec.mean)
    assert names["loss"].item() < 0.8  # 1.6 before training


def test_the_card_of_a_convolutional_stem_runs(tmp_path: Path) -> None:
    adapter = adapter_of(size=64)
    save_encoder(create_encoder("vit_tiny_patch16_224", adapter.spec, conv_stem=True), adapter, tmp_path / "e")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "e" / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("PATH_OF_THIS_FOLDER", str(tmp_path / "e")), names)  # timm alone cannot build such a network
    assert names["model"](torch.rand(2, 3, 64, 64)).shape == (2, 5)


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


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as refused:
        create_encoder(name, adapter_of().spec)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet_18", "resnet18, resnet18d"),
        ("ResNet-50", "resnet50"),
        ("resnet19", "resnet18"),
        ("vit_small", "vit_small_patch16_224"),
        ("vit_small_16", "vit_small_patch16_224"),
        ("convnext-tiny", "convnext_tiny"),
        ("dinov2_vits14", "vit_small_patch14_dinov2"),
    ],
)
def test_unknown_architectures_name_close_ones(name: str, close: str) -> None:
    said = refusal(name)
    assert f"no architecture '{name}'" in said and close in said
    offered = said.partition("closest names: ")[2].rstrip(".").split(", ")
    assert len(offered) <= 5 and all(timm.is_model(known) for known in offered)


def test_the_command_that_lists_architectures_prints_them() -> None:
    command = refusal("zzzz").partition("this prints: ")[2]
    program = re.fullmatch(r"python -c '(.*)'", command)
    assert program
    shown = subprocess.run([sys.executable, "-c", program[1]], capture_output=True, text=True, check=True).stdout
    assert {"resnet18", "vit_small_patch16_224"} <= set(shown.split())


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("resnet18.a1_in1k", "resnet18"),
        ("resnet18.no_such_tag", "resnet18"),
        ("hf-hub:timm/vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2"),
        ("timm/resnet50", "resnet50"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224"),
    ],
)
def test_names_of_weights_are_refused_with_the_setting_that_takes_them(name: str, plain: str) -> None:
    said = refusal(name)
    assert said.endswith(f"--backbone {plain}") and f"--init timm:{plain}" in said


def test_unfit_architectures_and_paths_say_what_to_do() -> None:
    assert "--init RUN" in refusal("local-dir:runs/heads")
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
