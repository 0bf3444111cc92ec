"""How a vector is formed: fixed views, size at use, joined layers; recorded in the folder, told by the fingerprint."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import data_adapters
from data_adapters.base import BaseAdapter
from lejepa_med.cli import main
from lejepa_med.config import PretrainConfig, VectorConfig
from lejepa_med.errors import ConfigError, EncoderError
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.models.encoder import Encoder, create_encoder
from lejepa_med.models.folder import INFO, load_encoder, randomised, record_formation, save_encoder
from lejepa_med.models.formation import Formation, fixed_views
from lejepa_med.training.folder import read_lines
from lejepa_med.training.loop import pretrain
from lejepa_med.training.monitor import Monitor
from lejepa_med.training.report import report_records
from lejepa_med.training.resolve import resolve_machine
from tests.lejepa_med.runs import interrupted, losses, tiny


def adapter_of(modality: str = "galaxy", *, size: int = 32, **options: object) -> data_adapters.Adapter:
    return data_adapters.create(modality, global_size=size, n_global=2, n_local=0, **options)


def saved(
    folder: Path, name: str = "resnet10t", modality: str = "galaxy", *, size: int = 32, **formation: int
) -> tuple[Encoder, Path]:
    """An encoder with an adapter of its size at use, as a run makes them, and its folder."""
    formed = Formation(**{"size": size, **formation})
    adapter = adapter_of(modality, size=size, embed_size=formed.size)
    encoder = create_encoder(name, adapter.spec, formation=formed)
    save_encoder(encoder, adapter, folder)
    return encoder.eval(), folder


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_eight_views_are_the_symmetries_of_the_square_and_four_the_mirrors() -> None:
    image = draw(1, 1, 3, 3)[0, 0].numpy()
    symmetries = {np.rot90(one, k).tobytes() for one in (image, image.T) for k in range(4)}
    views = fixed_views(torch.from_numpy(image)[None, None], 8)
    assert len(symmetries) == 8 and {view.numpy().tobytes() for view in views[:, 0]} == symmetries
    mirrors = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    for count in (1, 2, 4):
        assert np.array_equal(fixed_views(torch.from_numpy(image)[None, None], count)[:, 0], mirrors[:count])


def test_views_of_a_volume_are_its_mirror_images() -> None:
    volume = draw(1, 1, 2, 3, 4)[0, 0]
    flips = [(), (2,), (1,), (1, 2), (0,), (0, 2), (0, 1), (0, 1, 2)]
    for count in (1, 2, 4, 8):
        views = fixed_views(volume[None, None], count)[:, 0]
        assert all(torch.equal(view, volume.flip(axes)) for view, axes in zip(views, flips[:count], strict=True))


@torch.no_grad()
def test_a_vector_is_the_mean_over_its_views_whatever_the_batch() -> None:
    adapter = adapter_of()
    encoder = create_encoder("resnet10t", adapter.spec, formation=Formation(size=32, views=8)).eval()
    images = draw(3, 3, 32, 32)
    expected = torch.stack([encoder(view) for view in fixed_views(images, 8).split(3)]).mean(dim=0)
    for batch_size in (1, 5, 8, 20, 64):
        assert torch.allclose(encoder.form(images, batch_size=batch_size), expected, atol=1e-5)
    turned = torch.rot90(images, 1, (2, 3)).flip(-1)
    assert torch.allclose(encoder.form(turned, batch_size=64), expected, atol=1e-5)
    assert not torch.allclose(encoder(turned), encoder(images), atol=1e-4)


@torch.no_grad()
def test_two_layers_of_a_cnn_and_of_a_transformer() -> None:
    spec, images = adapter_of().spec, draw(2, 3, 32, 32)
    cnn = create_encoder("resnet18", spec, formation=Formation(size=32, layers=2)).eval()
    maps: list[torch.Tensor] = []
    cnn.backbone.layer3.register_forward_hook(lambda _module, _given, found: maps.append(found))
    pooled = cnn(images)
    assert (cnn.dim, cnn.vector_dim) == (512, 768)
    assert torch.allclose(cnn.form(images, batch_size=8), torch.cat([maps[0].mean((2, 3)), pooled], 1), atol=1e-5)

    for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"):  # a class token; two prefix tokens
        vit = create_encoder(name, spec, formation=Formation(size=32, layers=2)).eval()
        tokens: list[torch.Tensor] = []
        vit.backbone.blocks[-2].register_forward_hook(lambda _module, _given, found, to=tokens: to.append(found))
        pooled = vit(images)
        before = vit.backbone.forward_head(vit.backbone.norm(tokens[0]))
        assert torch.allclose(vit.form(images, batch_size=8), torch.cat([before, pooled], dim=1), atol=1e-5)
        assert before.shape == pooled.shape
    volumes = adapter_of("mri3d").spec
    with pytest.raises(ConfigError, match=r"monai:resnet10' gives its last layer only.*Choose 1 layer"):
        create_encoder("monai:resnet10", volumes, formation=Formation(size=32, layers=2))


def test_the_folder_says_how_and_the_fingerprint_follows(tmp_path: Path) -> None:
    encoder, folder = saved(tmp_path / "run" / "encoder")
    plain = load_encoder(folder)
    assert plain.info["formation"] == {"size": 32, "views": 1, "layers": 1}
    info = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps({key: value for key, value in info.items() if key != "formation"}))
    old = load_encoder(folder)  # as an earlier release wrote it
    assert (old.fingerprint, old.formation) == (plain.fingerprint, Formation(size=32))

    assert record_formation(tmp_path / "run", views=8, size=48, layers=2) == folder
    save_encoder(encoder, adapter_of(), folder)  # the run goes on, and what was recorded stays
    formed = load_encoder(folder)
    assert formed.formation == randomised(formed).formation == Formation(size=48, views=8, layers=2)
    assert formed.adapter.spec.embed_size == 48 and formed.adapter.spec.global_size == 32
    assert formed.dim == formed.info["dim"] == 512 + 256 and formed.embed([]).shape == (0, 768)
    card = (folder / "README.md").read_text()
    assert "768 numbers" in card and "48 px (trained at 32)" in card and "8 passes an image" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]

    fingerprints = {plain.fingerprint, formed.fingerprint, load_encoder(folder, views=1).fingerprint}
    for change in ({"views": 4}, {"views": 1}, {"layers": 1}):
        fingerprints.add(load_encoder(record_formation(folder, **change)).fingerprint)
    assert len(fingerprints) == 5  # views 1 on the fly and recorded are one
    assert load_encoder(record_formation(folder, size=32)).fingerprint == plain.fingerprint
    assert "trained at" not in (folder / "README.md").read_text()

    for unknown in ({"views": 16}, {"whiten": 1}):
        (folder / INFO).write_text(json.dumps({**info, "formation": {**info["formation"], **unknown}}))
        with pytest.raises(EncoderError, match="Install lejepa-med"):
            load_encoder(folder)


def test_what_a_modality_does_not_allow_is_refused_with_what_it_allows(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "e", modality="images")
    with pytest.raises(ConfigError, match=r"modality 'images'.*allows 1 or 2.*Choose 1 or 2\."):
        record_formation(folder, views=4)
    with pytest.raises(ConfigError, match="Choose 1 or 2"):
        load_encoder(folder, views=3)
    allowed = {
        (name, str(options)): adapter_of(name, **options).most_views  # type: ignore[attr-defined]
        for name, options in (
            ("galaxy", {}), ("histology", {}), ("images", {}), ("images", {"hflip": 0}), ("mri", {}),
            ("mri", {"flip": False}), ("mri", {"plane": "sagittal"}), ("mri3d", {}), ("mri3d", {"flip": False}),
        )
    }  # fmt: skip
    assert list(allowed.values()) == [8, 8, 2, 1, 2, 1, 1, 2, 1]

    class Own(BaseAdapter):
        name = "own"

    adapter = Own(global_size=32, local_size=32, n_local=0)
    assert adapter.most_views == 1 and adapter.spec.embed_size == 32
    with pytest.raises(ConfigError, match=r"prepares images of 32 pixels only.*options\.prepared_size"):
        from lejepa_med.models.formation import check_formation

        check_formation(Formation(size=64), adapter)


def test_a_larger_size_reaches_every_architecture_or_is_refused(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "vit", "vit_tiny_patch16_224")
    image = draw(1, 3, 48, 48)
    with pytest.raises(ConfigError, match=r"48 px is no multiple|40 px is no multiple"):
        record_formation(folder, size=40)
    loaded = load_encoder(record_formation(folder, size=48))
    assert loaded.info["model_args"]["dynamic_img_size"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(model(loaded.module.normalize(image)), torch.from_numpy(loaded.embed([image])), atol=1e-5)
    _, folder = saved(tmp_path / "mixer", "mixer_s16_224")
    before = (folder / INFO).read_bytes()
    with pytest.raises(ConfigError, match=r"trained on 32 px, does not take 64 px.*or 32, its size in training"):
        record_formation(folder, size=64)
    assert (folder / INFO).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "formation"),
    [
        ("resnet10t", {"views": 8}),
        ("vit_tiny_patch16_224", {"views": 4, "layers": 2, "size": 48}),
        ("convnextv2_atto", {"views": 2, "layers": 2}),
    ],
)
def test_the_lines_of_the_card_give_the_same_vectors(name: str, formation: dict[str, int], tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "e", name, **formation)
    loaded = load_encoder(folder)
    pixels = draw(2, 3, loaded.formation.size, loaded.formation.size)
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        if "vectors =" in block
    ]
    names: dict[str, Any] = {"pixels": pixels}
    exec(code.replace("PATH_OF_THIS_FOLDER", str(folder)), names)
    np.testing.assert_allclose(names["vectors"], loaded.embed([one[None] for one in pixels]), atol=1e-5)


def test_vectors_command_and_embed_with_fewer_views(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = saved(tmp_path / "run" / "encoder", modality="images")
    first = load_encoder(folder).fingerprint
    main(["vectors", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "1 pass an image" in said and "ms an image on this machine" in said and "from now on" not in said
    main(["vectors", str(tmp_path / "run"), "--views", "2", "--size", "48"])
    said = capsys.readouterr().out
    assert "2 passes an image" in said and "times one plain pass at 32 px" in said
    assert f"lejepa-med vectors {tmp_path / 'run'} --size 32 --views 1" in said.replace("\n", " ")

    for name, options in (("own", []), ("plain", ["--views", "1"])):
        main(["embed", str(tmp_path / "run"), str(pictures), "--out", str(tmp_path / name), "--workers", "0", *options])
    own, plain = EmbeddingTable.open(tmp_path / "own"), EmbeddingTable.open(tmp_path / "plain")
    assert own.encoder == load_encoder(folder).fingerprint
    assert plain.encoder == load_encoder(folder, views=1).fingerprint and first not in (own.encoder, plain.encoder)
    assert np.abs(own.vectors - plain.vectors).max() > 1e-4
    assert "2 passes an image" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # two ways never share a table
        main(["embed", str(tmp_path / "run"), str(pictures), "--out", str(tmp_path / "plain"), "--workers", "0"])
    assert "differs in: encoder" in capsys.readouterr().err


def test_a_run_evaluates_and_writes_what_it_was_told_and_resumes_bit_for_bit(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = {"views": 2, "size": 48, "layers": 2}
    train = {"epochs": 1, "checkpoint_minutes": 0}
    pretrain(tiny(pictures, tmp_path / "whole", vector=vector, train=train))
    encoder = load_encoder(tmp_path / "whole")
    assert dataclasses.asdict(encoder.formation) == vector
    (found,) = read_lines(tmp_path / "whole" / "online.jsonl")
    assert (encoder.dim, found["backbone/dim"], found["projector/dim"]) == (768, 512, 8)
    config = tiny(pictures, tmp_path / "halves", vector=vector, train=train)
    interrupted(config, monkeypatch, step=3)
    pretrain(config, resume=True)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert load_encoder(tmp_path / "halves").fingerprint == encoder.fingerprint
    (again,) = read_lines(tmp_path / "halves" / "online.jsonl")
    assert {**again, "seconds": 0} == {**found, "seconds": 0}


def test_defaults_follow_the_modality_and_what_it_allows(pictures: Path, tmp_path: Path) -> None:
    def vector(modality: str, **sections: Any) -> VectorConfig:
        return resolve_machine(tiny(pictures, tmp_path / "run", modality=modality, **sections), device="cpu").vector

    assert vector("galaxy").model_dump() == {"views": 8, "size": 32, "layers": 2}
    assert vector("galaxy", vector={"views": 1, "size": 64}).model_dump() == {"views": 1, "size": 64, "layers": 2}
    assert vector("images").views == 1 and vector("mri").model_dump() == {"views": 2, "size": 32, "layers": 2}

    def evaluated(modality: str, **sections: Any) -> int:
        base = PretrainConfig(archive=pictures, out=tmp_path / "run", modality=modality, **sections)
        return resolve_machine(base, device="cpu").monitor.sample

    assert (evaluated("galaxy"), evaluated("images"), evaluated("galaxy", monitor={"sample": 900})) == (250, 1000, 900)
    with pytest.raises(ConfigError, match="Choose 1 or 2"):
        vector("images", vector={"views": 8})
    with pytest.raises(ConfigError, match=r"--vector\.size 64"):
        vector("images", data={"options": {"embed_size": 64}})
    with pytest.raises(ConfigError, match=r"last layer only.*--vector\.layers"):
        vector("mri3d", vector={"layers": 2}, model={"backbone": "monai:resnet10"})


def test_the_planned_end_of_a_run_counts_the_passes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve_machine(tiny(pictures, tmp_path / "run", vector={"views": 2}), device="cpu")
    monitor = object.__new__(Monitor)
    monitor.config, monitor.sharded, monitor._plan = config, False, ([None] * 50, None)  # type: ignore[assignment]
    monkeypatch.setattr(Monitor, "sample", [None] * 50)
    monkeypatch.setattr(Monitor, "_record_cost", lambda _self: (0.0, 6.0, 3.0))  # six passes: 3 slices, 2 views
    coloured = report_records(config, monitor._plan[0])[1]  # patch colours take one pass of each image
    assert monitor.ending() == pytest.approx(2 * 50 * 6 + coloured * 1 + 50 * 6)
