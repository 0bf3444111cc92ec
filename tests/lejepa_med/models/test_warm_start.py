"""--init: timm's folders, safetensors files and names; what is adapted, refused, said and recorded."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv, group_parameters, save_for_hf

import data_adapters
from data_adapters.base import AdapterOptions, BaseAdapter, Spec
from data_adapters.errors import UserError
from examples.convert_weights import main as convert
from lejepa_med.config import PretrainConfig, origins_of, read_settings
from lejepa_med.errors import ConfigError
from lejepa_med.models.encoder import Encoder, create_encoder
from lejepa_med.models.folder import load_encoder, save_encoder
from lejepa_med.models.source import open_source
from lejepa_med.models.start import adapt_channels, freeze, start_from
from lejepa_med.training.loop import pretrain
from lejepa_med.training.resolve import resolve_machine
from tests.lejepa_med.runs import interrupted, losses, tiny, weights

VIT = "vit_tiny_patch16_224"


def timm_folder(folder: Path, name: str = "resnet10t", *, seed: int = 0, **changes: Any) -> Path:
    """A folder as timm writes it, with random weights; `changes` replace entries of pretrained_cfg."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=7)
    for module in model.modules():  # as training leaves it, so that an unloaded norm shows
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    save_for_hf(model, folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def started(name: str, init: Path | str, *, channels: int = 3, size: int = 64) -> Encoder:
    adapter = data_adapters.create("images", global_size=size, n_local=0, channels=channels)
    encoder = create_encoder(name, adapter.spec)
    start_from(encoder, Path(init))
    return encoder


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", VIT])
def test_a_timm_folder_starts_an_encoder_as_timm_adapts_it(name: str, channels: int, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "w", name)
    encoder = started(name, folder, channels=channels)
    sizes = {"img_size": 64} if name == VIT else {}
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, in_chans=channels, **sizes)
    pixels = torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(encoder.backbone.eval()(pixels), theirs.eval()(pixels), atol=1e-5)
    said = "\n".join(encoder.notes)
    assert re.search(r"(\d+) of \1 tensors", said) and "not in these weights" not in said
    assert ("channel" in said) == (channels != 3)
    assert "the classifier was left out" in said
    assert ("resized: pos_embed from 1 x 197 x 192 to 1 x 17 x 192" in said) == (name == VIT)


def test_stems_of_pixel_blocks_and_positions_that_timm_does_not_resize(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "blocks", "tresnet_m")
    grey = started("tresnet_m", folder, channels=1)
    assert "adapted: body.conv1.conv.weight from 3 to 1 channel" in grey.notes
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, in_chans=1)
    assert torch.allclose(grey.backbone.body.conv1.conv.weight, theirs.body.conv1.conv.weight, atol=1e-6)
    grown = started("tresnet_m", folder, channels=6).backbone  # twice the three channels, so half of each response
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(grown.eval()(pixels.repeat(1, 2, 1, 1)), whole.eval()(pixels), atol=1e-4)
    encoder = started("cait_xxs24_224", timm_folder(tmp_path / "cait", "cait_xxs24_224"))
    assert "resized: pos_embed from 1 x 196 x 192 to 1 x 16 x 192" in encoder.notes


def test_channels_are_adapted_as_timm_does_and_from_any_number() -> None:
    weight = torch.randn(4, 3, 5, 5)
    for channels in (1, 2, 4, 5, 7):
        assert torch.allclose(adapt_channels(weight, channels), adapt_input_conv(channels, weight))
    five = torch.randn(4, 5, 3, 3)
    grey = torch.rand(1, 1, 8, 8)
    wanted = torch.nn.functional.conv2d(grey.expand(-1, 5, -1, -1), five)
    assert torch.allclose(torch.nn.functional.conv2d(grey, adapt_channels(five, 1)), wanted, atol=1e-5)
    three = torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8), adapt_channels(torch.ones(4, 5, 3, 3), 3))
    assert torch.allclose(three, torch.full_like(three, 45.0))


@pytest.mark.parametrize(("before", "after"), [((5, 64), (1, 32)), ((1, 32), (3, 96))])
def test_our_own_encoder_starts_one_of_other_channels_and_size(
    before: tuple[int, int], after: tuple[int, int], tmp_path: Path
) -> None:
    adapter = data_adapters.create("images", global_size=before[1], n_local=0, channels=before[0])
    old = create_encoder(VIT, adapter.spec)
    save_encoder(old, adapter, tmp_path / "run" / "encoder")
    encoder = started(VIT, tmp_path / "run", channels=after[0], size=after[1])
    kept = encoder.backbone.state_dict()
    expected = adapt_channels(old.backbone.patch_embed.proj.weight.detach(), after[0])
    assert torch.allclose(kept["patch_embed.proj.weight"], expected)
    assert torch.equal(kept["blocks.3.attn.qkv.weight"], old.backbone.state_dict()["blocks.3.attn.qkv.weight"])
    assert kept["pos_embed"].shape[1] == 1 + (after[1] // 16) ** 2
    assert torch.equal(kept["pos_embed"][:, :1], old.backbone.pos_embed[:, :1])


def test_a_run_follows_the_weights_and_records_them(pictures: Path, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "w", mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4], tag="own", license="cc-by-4.0")
    open_model = {"init": f"local-dir:{folder}", "backbone": None}
    pretrain(tiny(pictures, tmp_path / "first", model=open_model, train={"epochs": 0}))
    first = load_encoder(tmp_path / "first")
    (origin,) = first.info["origin"]
    assert (origin["name"], origin["tag"], origin["licence"]) == ("resnet10t.own", "own", "cc-by-4.0")
    assert origin["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert first.info["backbone"] == "resnet10t"
    assert first.adapter.spec.mean == (0.4, 0.5, 0.6) and first.adapter.spec.std == (0.2, 0.3, 0.4)
    assert first.info["training"]["optim"]["lr"] == 2e-4
    of = origins_of(read_settings(tmp_path / "first" / "config.yaml")) or {}
    followed = ("model.backbone", "optim.lr", "data.options.mean", "data.options.std")
    assert {of[name] for name in followed} == {"from the weights"}
    given = load_file(folder / "model.safetensors")
    kept = load_file(tmp_path / "first" / "encoder" / "model.safetensors")
    assert kept.keys() == given.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, given[key]) for key, value in kept.items())
    for file in ("encoder/config.json", "encoder/lejepa_med.json", "encoder/README.md", "config.yaml"):
        assert str(tmp_path) not in (tmp_path / "first" / file).read_text()
    card = (tmp_path / "first" / "encoder" / "README.md").read_text()
    assert "| started from | resnet10t.own, licence cc-by-4.0, SHA-256 " + origin["sha256"][:16] in card
    # continued: its own origin comes first, its normalisation and rate stay
    pretrain(tiny(pictures, tmp_path / "second", model={**open_model, "init": tmp_path / "first"}, train={"epochs": 0}))
    second = load_encoder(tmp_path / "second")
    assert second.info["origin"][0] == origin and second.info["origin"][1]["name"] == "encoder first"
    assert second.info["origin"][1]["sha256"] == first.info["weights_sha256"]
    assert second.adapter.spec.mean == (0.4, 0.5, 0.6)
    assert (
        "| and then | encoder first (resnet10t), SHA-256" in (tmp_path / "second" / "encoder" / "README.md").read_text()
    )
    # vectors are those of timm's model on pixels normalised by the weights' own numbers
    manifest = data_adapters.scan.scan_archive(first.adapter, pictures).manifest
    pixels = first.adapter.prepare(manifest.record(0)).float() / 255
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        wanted = model((pixels - mean) / std)
    assert np.allclose(first.embed([first.adapter.prepare(manifest.record(0))]), wanted, atol=1e-4)


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_warm_run_resumes_exactly_without_its_source(
    frozen: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = timm_folder(tmp_path / "w")
    start = load_file(folder / "model.safetensors")
    changed = {
        "model": {"init": folder, "backbone": None, "freeze": frozen},
        "train": {"epochs": 1, "checkpoint_minutes": 0},
    }
    pretrain(tiny(pictures, tmp_path / "whole", **changed))
    interrupted(tiny(pictures, tmp_path / "broken", **changed), monkeypatch, step=2)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "broken" / "encoder")  # the origin is in the checkpoint, too
    pretrain(tiny(pictures, tmp_path / "broken", **changed), resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    origins = [load_encoder(tmp_path / name).info["origin"] for name in ("broken", "whole")]
    assert origins[0] == origins[1] and origins[0][0]["name"] == "resnet10t.c3_in1k"
    trained = load_encoder(tmp_path / "broken").module.backbone.state_dict()
    same = {name for name in trained if torch.equal(trained[name], start[name])}
    assert ({"layer1.0.conv1.weight", "layer1.0.bn1.running_mean"} <= same) == (frozen > 0)
    assert "layer4.0.conv1.weight" not in same


def test_defaults_of_a_warm_start_give_way_to_what_is_chosen(tmp_path: Path) -> None:
    def resolved(**sections: Any) -> PretrainConfig:
        base = PretrainConfig(archive=tmp_path, out=tmp_path, modality="images", **sections)
        return resolve_machine(base, device="cpu")

    cnn, vit = timm_folder(tmp_path / "cnn"), timm_folder(tmp_path / "vit", VIT)
    assert resolved().optim.lr == 2e-3
    assert resolved(model={"init": cnn}).optim.lr == resolved(model={"init": vit}).optim.lr == 2e-4
    assert resolved(model={"init": cnn}).model.backbone == "resnet10t"
    assert resolved(model={"init": cnn}, optim={"lr": 1e-3}).optim.lr == 1e-3
    with pytest.raises(ConfigError, match=r"is a resnet10t, this run's is a resnet18.*--backbone resnet10t"):
        resolved(model={"init": cnn, "backbone": "resnet18"})
    volumes = PretrainConfig(archive=tmp_path, out=tmp_path, modality="mri3d", model={"init": cnn})
    with pytest.raises(ConfigError, match=r"resnet10t, which is for 2-D images; .* gives volumes"):
        resolve_machine(volumes, device="cpu")


def test_registers_follow_the_weights(tmp_path: Path) -> None:
    adapter = data_adapters.create("images", global_size=64, n_local=0)
    save_encoder(create_encoder(VIT, adapter.spec, registers=4), adapter, tmp_path / "e")
    base = {"archive": tmp_path, "out": tmp_path, "modality": "images"}
    followed = resolve_machine(PretrainConfig(**base, model={"init": tmp_path / "e"}), device="cpu")
    assert followed.model.registers == 4
    encoder = create_encoder(VIT, adapter.spec, registers=4)
    with pytest.raises(ConfigError, match=r"cannot be made to fit .*Give --model\.registers"):
        start_from(encoder, timm_folder(tmp_path / "w", VIT))


# --- normalisation ----------------------------------------------------------------------------------------------------


class Bands(BaseAdapter):
    """A modality with statistics of its own kind of data."""

    name = "bands"
    suffixes = (".bands",)

    @property
    def spec(self) -> Spec:
        return self.make_spec(channels=2, mean=(0.1, 0.2), std=(0.05, 0.07))


def test_normalisation_of_the_weights_by_kind_of_image() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)

    def taken(adapter: Any) -> Spec:
        spec: Spec = adapter.normalised_as(mean, std).spec
        return spec

    for rgb in (data_adapters.create("images"), data_adapters.create("histology", mpp=0.5)):
        assert (taken(rgb).mean, taken(rgb).std) == (mean, std)
    grey = data_adapters.create("mri")
    assert (taken(grey).mean, taken(grey).std) == ((0.5,), (0.2,))
    flux = data_adapters.create("galaxy", kind="flux", bands="u,g,r,i,z")
    assert (taken(flux).mean, taken(flux).std) == ((0.5,) * 5, (0.2,) * 5)
    assert taken(Bands()) == Bands().spec  # measured on its own data: that is the weights' normalisation, redone
    chosen = data_adapters.create("images", mean=(0.1, 0.1, 0.1), std=(1, 1, 1))
    assert taken(chosen) == chosen.spec and chosen.spec.mean == (0.1,) * 3
    again = data_adapters.from_description(grey.normalised_as(mean, std).describe())
    assert again.spec == taken(grey)
    assert "mean" not in grey.describe()["options"]


def test_wrong_normalisation_options_are_refused() -> None:
    with pytest.raises(UserError, match="mean and std belong together"):
        data_adapters.create("images", mean=(0.5, 0.5, 0.5))
    with pytest.raises(UserError, match=r"have 3 numbers, but the images have 1 channel\."):
        _ = data_adapters.create("mri", mean=(0.5,) * 3, std=(0.5,) * 3).spec
    with pytest.raises(ValueError, match="greater than 0"):
        AdapterOptions(mean=(0.5,), std=(0.0,))


def test_numbers_for_values_up_to_255_are_divided(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "w", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    source = open_source(folder, backbone=None)
    assert source.mean == pytest.approx((0.485, 0.456, 0.406)) and source.std == pytest.approx((0.229, 0.224, 0.225))
    plain = open_source(timm_folder(tmp_path / "p", mean=[0, 0, 0], std=[1, 1, 1]), backbone=None)
    assert (plain.mean, plain.std) == ((0,) * 3, (1,) * 3)
    with pytest.raises(ConfigError, match="are no normalisation"):
        open_source(timm_folder(tmp_path / "x", mean=[0.5], std=[0.0]), backbone=None)


# --- files and names --------------------------------------------------------------------------------------------------


def test_a_safetensors_file_alone(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "w")
    file = tmp_path / "old weights.safetensors"
    state = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": tensor.half() for name, tensor in state.items()}, file)  # as data-parallel runs save
    with pytest.raises(ConfigError, match=r"does not name their architecture.*Add --backbone"):
        open_source(file, backbone=None)
    encoder = started("resnet10t", file)
    assert torch.allclose(encoder.backbone.layer1[0].conv1.weight, state["layer1.0.conv1.weight"], atol=1e-3)
    assert encoder.origin[0]["name"] == "old weights.safetensors" and str(tmp_path) not in json.dumps(encoder.origin)
    beside = open_source(folder / "model.safetensors", backbone=None)  # config.json lies beside it
    assert dataclasses.replace(beside, place=str(folder)) == open_source(folder, backbone=None)


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        ("resnet18", "resnet34", r"not those of a resnet34: only 5\d % of .* look like resnet18\."),
        ("resnet34", "resnet18", r"not those of a resnet18: it has further layers.* look like resnet34\."),
        (VIT, "resnet18", rf"not those of a resnet18: only 0 % .* look like {VIT}\."),
        ("resnet50", VIT, rf"not those of a {VIT}: only 0 % .* look like resnet50\."),
    ],
)
def test_weights_of_another_architecture_are_refused_with_both_names(
    theirs: str, ours: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    shutil.move(timm_folder(tmp_path / "w", theirs) / "model.safetensors", file)
    with pytest.raises(ConfigError, match=told.replace(" %", "%")):
        started(ours, file)


def test_what_did_not_load_is_said(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "w")
    state = load_file(folder / "model.safetensors")
    del state["layer1.0.conv1.weight"]
    save_file({**state, "decoder.weight": torch.zeros(3, 3)}, folder / "model.safetensors")
    said = "\n".join(started("resnet10t", folder).notes)
    assert "not in these weights, so random or untrained: layer1.0.conv1.weight" in said
    assert "so left out: decoder.weight" in said
    state["conv1.0.weight"][0] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"conv1\.0\.weight are not finite"):
        started("resnet10t", folder)


def test_unusable_sources_say_what_to_do(tmp_path: Path) -> None:
    def refused(init: Path | str, backbone: str | None = None) -> str:
        with pytest.raises(UserError) as error:
            open_source(Path(init), backbone=backbone).tensors()
        return str(error.value)

    assert "give --init timm:resnet18.a1_in1k" in refused("resnet18.a1_in1k")
    assert "does not exist" in refused("nowhere/at/all")
    (tmp_path / "w.pth").write_bytes(b"x")
    assert "examples.convert_weights" in refused(tmp_path / "w.pth", "resnet18")
    assert "neither lejepa_med.json" in refused(tmp_path)
    folder = timm_folder(tmp_path / "w")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    assert "not a readable safetensors file" in refused(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "holds no model.safetensors, but pytorch_model.bin" in refused(folder)
    (folder / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    assert "does not name an architecture of timm" in refused(folder)
    (folder / "config.json").write_text('{"architecture": "resnet19"}')
    (folder / "model.safetensors").write_bytes(whole)
    assert "has no architecture 'resnet19'" in refused(folder)


def test_a_name_of_timm_is_fetched_once_from_the_hub_and_only_by_name(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client reads its cache here, and is offline: a folder of timm's lies where it would have put it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigError, match=r"resnet10t could not be fetched .*another machine.*--init FOLDER"):
        pretrain(tiny(pictures, tmp_path / "run", model={"init": "timm:resnet10t", "backbone": None}))
    assert not (tmp_path / "run").exists()
    for name in ("resnet10x.c3_in1k", "resnet10t.nobody"):
        with pytest.raises(ConfigError, match=rf"no weights by the name '{name}'.*timm:resnet"):
            open_source(Path(f"timm:{name}"), backbone=None)
    cached = tmp_path / "hub" / "models--timm--resnet10t.c3_in1k"
    timm_folder(cached / "snapshots" / "abc", tag="c3_in1k")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    for name in ("resnet10t", "timm/resnet10t.c3_in1k"):
        out = tmp_path / name.replace("/", "-")
        pretrain(tiny(pictures, out, model={"init": f"timm:{name}", "backbone": None}, train={"epochs": 0}))
        (origin,) = load_encoder(out).info["origin"]
        assert (origin["name"], origin["licence"]) == ("resnet10t.c3_in1k", "apache-2.0")


def test_pth_files_become_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t")
    plain = {f"layer.{index}": tensor for index, tensor in enumerate(model.state_dict().values())}
    torch.save(
        {"state_dict": {f"module.{name}": t for name, t in model.state_dict().items()}, "epoch": 3}, tmp_path / "a"
    )
    torch.save(plain, tmp_path / "b")
    torch.save(model, tmp_path / "c")
    convert([str(tmp_path / "a"), str(tmp_path / "a.safetensors")])
    assert started("resnet10t", tmp_path / "a.safetensors").origin[0]["name"] == "a.safetensors"
    options = ["--architecture", "resnet10t", "--reference", "resnet10t", "--mean", ".498", "--std", ".502"]
    convert([str(tmp_path / "b"), str(tmp_path / "folder"), *options, "--tag", "in1k", "--licence", "apache-2.0"])
    source = open_source(tmp_path / "folder", backbone=None)
    assert (source.name, source.licence, source.mean) == ("resnet10t.in1k", "apache-2.0", (0.498,) * 3)
    for file in ("a.safetensors", "folder"):
        kept = started("resnet10t", tmp_path / file).backbone.state_dict()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in kept.items())
    with pytest.raises(SystemExit) as ended:
        convert([str(tmp_path / "c"), str(tmp_path / "c.safetensors")])
    assert ended.value.code == 2 and "holds more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize(("name", "layers", "lowest"), [("resnet10t", 2, "layer1"), (VIT, 3, "blocks.1")])
def test_frozen_layers_keep_weights_and_statistics(name: str, layers: int, lowest: str, tmp_path: Path) -> None:
    encoder = started(name, timm_folder(tmp_path / "w", name))
    freeze(encoder, layers)
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder.train()
    for _ in range(2):
        encoder(torch.rand(4, 3, 64, 64)).square().sum().backward()
        optimizer.step()
    place = group_parameters(encoder.backbone, encoder.backbone.group_matcher(coarse=True), reverse=True)
    changed = {key for key, value in encoder.backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key, layer in place.items() if layer >= layers} <= changed | {"norm.bias"}
    assert not any(key.startswith(f"{lowest}.") or place.get(key, layers) < layers for key in changed)
    assert any("running_mean" in key for key in changed) == (name != VIT)
    assert f"the lowest {layers} of {max(place.values()) + 1} layers are not trained" in encoder.notes
    assert not encoder.backbone.get_submodule(lowest).training and encoder.backbone.training


@pytest.mark.parametrize(
    ("name", "recipe", "chosen", "frozen"),
    [
        ("resnet10t", "laptop", None, 2),
        ("resnet10t", "laptop", 0, 0),
        ("resnet10t", "workstation", None, 0),
        (VIT, "laptop", None, 0),
    ],
)
def test_the_laptop_recipe_freezes_half_of_a_cnn_from_elsewhere(
    name: str, recipe: str, chosen: int | None, frozen: int, tmp_path: Path
) -> None:
    model = {"init": timm_folder(tmp_path / "w", name), "freeze": chosen}
    config = PretrainConfig(archive=tmp_path, out=tmp_path, modality="images", model=model, recipe=recipe)
    assert resolve_machine(config, device="cpu").model.freeze == frozen


def test_mr_slices_from_elsewhere_are_large_where_nobody_says_otherwise(tmp_path: Path) -> None:
    def views(modality: str, name: str | None, **given: int) -> tuple[int | None, int | None]:
        model = {} if name is None else {"init": timm_folder(tmp_path / name, name)}
        config = PretrainConfig(archive=tmp_path, out=tmp_path, modality=modality, model=model, views=given)
        found = resolve_machine(config, device="cpu").views
        return found.n_global, found.global_size

    assert views("mri", "resnet10t") == (2, 224) and views("mri", None) == (4, 128)
    assert views("mri", "resnet10t", global_size=96) == (4, 96) and views("mri", "resnet10t", n_global=3) == (3, 224)
    assert views("mri", VIT) == (2, 128) and views("galaxy", "resnet10t") == (4, 64)


def test_an_encoder_of_ours_is_continued_as_a_whole(tmp_path: Path) -> None:
    adapter = data_adapters.create("images", global_size=32, local_size=32)
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, tmp_path / "run" / "encoder")
    config = PretrainConfig(archive=tmp_path, out=tmp_path, modality="images", model={"init": tmp_path / "run"})
    assert resolve_machine(config, device="cpu").model.freeze == 0


def test_freezing_needs_weights_and_leaves_something_to_train(tmp_path: Path) -> None:
    base = PretrainConfig(archive=tmp_path, out=tmp_path, modality="images", model={"freeze": 1})
    with pytest.raises(ConfigError, match=r"--init"):
        resolve_machine(base, device="cpu")
    encoder = started("resnet10t", timm_folder(tmp_path / "w", "resnet10t"))
    with pytest.raises(ConfigError, match="Freeze at most 4"):
        freeze(encoder, 5)
