"""3-D encoders: one step and a faithful folder for each family; a run on volumes is a function of its settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from safetensors.torch import load_file
from torch import nn

import data_adapters
from data_adapters.scan import scan_archive
from lejepa_med.config import OptimConfig, PretrainConfig
from lejepa_med.data.dataset import EpochBatches, ViewDataset
from lejepa_med.data.loader import make_loader
from lejepa_med.errors import ConfigError
from lejepa_med.methods.lejepa.method import LeJEPAMethod
from lejepa_med.models.architectures import is_convolutional
from lejepa_med.models.batchnorm import SyncBatchNorm, convert_batchnorm
from lejepa_med.models.embed import embed_records
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import fingerprint, load_encoder, save_encoder
from lejepa_med.objective import LeJEPA, SIGReg
from lejepa_med.training.loop import pretrain
from lejepa_med.training.optimizer import make_optimizer
from lejepa_med.training.resolve import resolve_machine
from tests.data.mri import phantom, write_nifti
from tests.lejepa_med.runs import interrupted, losses, tiny, weights

FAMILIES = ["monai:resnet10", "monai:vit_tiny", "monai:swinunetr_small"]


def adapter_of(**options: object) -> data_adapters.Adapter:
    return data_adapters.create("mri3d", **{"global_size": 32, "local_size": 16, "n_local": 2, **options})


def needs(name: str) -> None:
    if not is_convolutional(name):
        pytest.importorskip("einops", reason="MONAI's transformers need the extra 'mri'")


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight heads of two kinds, with labels."""
    root = tmp_path_factory.mktemp("heads")
    lines = ["path,label,group"]
    for number in range(8):
        head = phantom(seed=number, shape=(24, 28, 20))
        write_nifti(root / f"sub-{number}.nii", np.roll(head, 4 * (number % 2), axis=0))
        lines.append(f"sub-{number}.nii,{('left', 'right')[number % 2]},s{number}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_and_a_faithful_folder(name: str, tmp_path: Path) -> None:
    needs(name)
    adapter = adapter_of()
    torch.manual_seed(0)
    encoder = create_encoder(name, adapter.spec, drop_path=0.0 if is_convolutional(name) else 0.1)
    model = LeJEPAMethod(encoder, nn.Linear(encoder.dim, 8), LeJEPA(0.1, SIGReg(slices=8)))
    optimizer = make_optimizer(model, OptimConfig(lr=1e-3, weight_decay=0.1))
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    out = model(torch.rand(2, 2, 1, 32, 32, 32), torch.rand(2, 2, 1, 16, 16, 16), seed=0, step=0)
    assert out.z.shape == (2, 8) and out.features.shape == (2, encoder.dim)
    out.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)  # DDP stops where one idles
    optimizer.step()
    after = encoder.backbone.state_dict()
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert len(changed) > 0.8 * len([key for key, value in encoder.backbone.named_parameters() if value.requires_grad])

    save_encoder(encoder, adapter, tmp_path / "e")
    loaded = load_encoder(tmp_path / "e")
    cubes = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        vectors = encoder.eval()(cubes)
        torch.testing.assert_close(torch.from_numpy(loaded.embed([cubes[:1], cubes[1:]])), vectors, atol=1e-5, rtol=0)
        assert loaded.module.patch_maps(cubes).shape[0] == 2 and loaded.module.patch_maps(cubes).ndim == 5
    # MONAI alone can read it, as the model card says
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    module, _, kind = config["class"].rpartition(".")
    plain = getattr(__import__(module, fromlist=[kind]), kind)(**config["arguments"])
    plain.load_state_dict(load_file(tmp_path / "e" / "model.safetensors"), strict=True)
    out = plain.eval()(encoder.normalize(cubes))
    pooled = {"resnet": lambda: out, "vit_ti": lambda: out[0].mean(1), "swinun": lambda: out[-1].mean((2, 3, 4))}
    torch.testing.assert_close(pooled[name.removeprefix("monai:")[:6]](), vectors, atol=1e-5, rtol=0)
    assert 'config["class"]' in (tmp_path / "e" / "README.md").read_text()


def test_names_and_dimensions_must_fit() -> None:
    volumes, pictures = adapter_of().spec, data_adapters.create("images").spec
    with pytest.raises(ConfigError, match=r"'resnet18' is a backbone for 2-D.*monai:resnet18"):
        create_encoder("resnet18", volumes)
    with pytest.raises(ConfigError, match=r"backbone for volumes.*resnet18"):
        create_encoder("monai:resnet18", pictures)
    with pytest.raises(ConfigError, match=r"no 3-D architecture 'monai:resnet19'.*monai:resnet18"):
        create_encoder("monai:resnet19", volumes)
    with pytest.raises(ConfigError, match="no stochastic depth"):
        create_encoder("monai:resnet10", volumes, drop_path=0.1)
    early = PretrainConfig(archive=Path("a"), out=Path("b"), modality="mri3d", model={"backbone": "resnet18"})
    with pytest.raises(ConfigError, match="2-D images"):
        resolve_machine(early, device="cpu")


def test_a_vit_refuses_sizes_that_it_would_cut() -> None:
    pytest.importorskip("einops", reason="MONAI's transformers need the extra 'mri'")
    with pytest.raises(ConfigError, match="no multiple of its patch of 16"):
        create_encoder("monai:vit_tiny", adapter_of(local_size=24).spec)


def test_positions_of_a_vit_do_not_decay() -> None:
    pytest.importorskip("einops", reason="MONAI's transformers need the extra 'mri'")
    encoder = create_encoder("monai:vit_tiny", adapter_of().spec)
    _, plain = make_optimizer(encoder, OptimConfig(lr=1.0, weight_decay=0.1)).param_groups
    positions = encoder.backbone.patch_embedding.position_embeddings
    assert any(p is positions for p in plain["params"])


def test_defaults_by_machine() -> None:
    base = PretrainConfig(archive=Path("a"), out=Path("b"), modality="mri3d")
    gpu, cpu = resolve_machine(base, device="cuda"), resolve_machine(base, device="cpu")
    views = gpu.views
    assert (views.n_global, views.global_size, views.n_local, views.local_size) == (2, 96, 6, 48)
    assert (gpu.model.backbone, gpu.train.batch_size, gpu.model.drop_path) == ("monai:vit_small", 64, 0.1)
    assert (cpu.model.backbone, cpu.train.batch_size, cpu.model.drop_path) == ("monai:resnet10", 16, 0.0)
    assert (cpu.views.n_global, cpu.views.n_local, cpu.views.global_size) == (4, 0, 48)
    given = base.model_copy(update={"views": base.views.model_copy(update={"global_size": 64})})
    assert resolve_machine(given, device="cuda").views.local_size == 32


def test_batchnorm_of_volumes_is_synchronised_as_it_is() -> None:
    backbone = create_encoder("monai:resnet10", adapter_of().spec).backbone
    cubes = torch.rand(2, 1, 16, 16, 16)
    plain = backbone.train()(cubes).detach()
    converted = convert_batchnorm(backbone)
    kinds = {type(m) for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {SyncBatchNorm}
    assert torch.equal(converted(cubes), plain)


def test_a_folder_from_before_dimensions_keeps_its_fingerprint() -> None:
    info = {"weights_sha256": "w", "adapter": {"adapter": "mri"}, "spec": {"channels": 1}}
    assert fingerprint(info) == fingerprint({**info, "spec": {"channels": 1, "dims": 2}})
    assert fingerprint(info) != fingerprint({**info, "spec": {"channels": 1, "dims": 3}})


def test_workers_give_equal_batches(heads: Path) -> None:
    adapter = adapter_of(global_size=16)
    manifest = scan_archive(adapter, heads, verify=False).manifest

    def run(workers: int) -> list[torch.Tensor]:
        batches = EpochBatches([1] * len(manifest), batch_size=4, epochs=1, seed=5)
        loader = make_loader(ViewDataset(manifest, adapter, seed=5), batches, workers=workers)
        return [part for b in loader for part in (b.rows, b.global_views, b.local_views) if part is not None]

    alone, two = run(0), run(2)
    assert alone[1].shape == (2, 4, 1, 16, 16, 16) and alone[2].shape == (2, 4, 1, 16, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(alone, two, strict=True))


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of two steps, broken off in the fourth step, against a run that was left alone."""

    def config(name: str, minutes: float) -> PretrainConfig:
        return tiny(
            heads,
            tmp_path / name,
            modality="mri3d",
            model={"backbone": "monai:resnet10"},
            views={"n_local": 2, "global_size": 24, "local_size": 16},
            train={"batch_size": 4, "checkpoint_minutes": minutes},
            data={"catalog": heads / "labels.csv"},
        )

    assert pretrain(config("whole", 5)).finished
    interrupted(config("stopped", 0), monkeypatch, step=3)
    assert pretrain(config("stopped", 0), resume=True).finished
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")

    report = (tmp_path / "whole" / "report.html").read_text()
    assert 'id="pca"' in report and 'id="neighbours"' in report and "monai:resnet10 on mri3d" in report
    encoder = load_encoder(tmp_path / "whole")
    records = scan_archive(encoder.adapter, heads, verify=False).manifest.records()
    vectors = [feature.vector for feature in embed_records(encoder, records)]
    assert np.isfinite(np.stack(vectors)).all()
    assert not timm.is_model(encoder.module.name)


def test_a_swinunetr_encoder_starts_monais_segmentation_network(tmp_path: Path) -> None:
    adapter = data_adapters.create("mri3d", global_size=32, local_size=32, n_local=0)
    encoder = create_encoder("monai:swinunetr_small", adapter.spec)
    save_encoder(encoder, adapter, tmp_path / "encoder")
    size = json.loads((tmp_path / "encoder" / "config.json").read_text())["arguments"]["embed_dim"]
    network = SwinUNETR(in_channels=1, out_channels=2, feature_size=size).eval()
    network.swinViT.load_state_dict(load_file(tmp_path / "encoder" / "model.safetensors"))  # all keys, no others
    pixels = torch.rand(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        deepest = network.swinViT(pixels[..., :32, :32, :32], network.normalize)[-1]
        torch.testing.assert_close(deepest, encoder.eval().backbone.forward_features(pixels[..., :32, :32, :32]))
        assert network(pixels).shape == (1, 2, 64, 64, 64)  # a class for each voxel
