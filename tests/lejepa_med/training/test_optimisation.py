"""Options of optimisation: each does what it says, and a run with it resumes bit for bit."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import data_adapters
from lejepa_med.config import MachineModel, OptimConfig, PretrainConfig
from lejepa_med.data.loader import make_loader
from lejepa_med.errors import ConfigError
from lejepa_med.methods.lejepa import SettledLeJEPA
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import find_encoders, load_encoder, randomised, save_encoder
from lejepa_med.models.start import compile_backbone
from lejepa_med.training import loop
from lejepa_med.training.device import make_fabric
from lejepa_med.training.loop import make_data, pretrain
from lejepa_med.training.optimizer import WeightAverage, learning_rate, make_optimizer
from lejepa_med.training.resolve import check_batch, resolve_archive, resolve_machine, warnings
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.state import build_encoder, build_method, build_state, train_step
from tests.lejepa_med.runs import interrupted, losses, tiny, weights

VIT = "vit_tiny_patch16_224"


def spec_of(**options: int) -> data_adapters.base.Spec:
    return data_adapters.create("images", **{"global_size": 32, "n_local": 0, "n_global": 2, **options}).spec


def test_constant_schedule_warms_up_and_stays() -> None:
    config = OptimConfig(lr=1e-3, schedule="constant", warmup=0.1)
    rates = [learning_rate(step, steps=100, config=config) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4) and set(rates[9:]) == {1e-3}


def test_layer_decay_lowers_the_rate_towards_the_stem() -> None:
    config = resolved(model={"backbone": VIT}, optim={"lr": 1.0, "weight_decay": 0.1, "layer_decay": 0.5})
    method = build_method(config, spec_of())
    groups = make_optimizer(method, config.optim).param_groups
    names = {id(p): name for name, p in method.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(names)
    assert scale["encoder.backbone.norm.weight"] == 1 and scale["projector.layers.0.weight"] == 1
    blocks = [scale[f"encoder.backbone.blocks.{i}.attn.qkv.weight"] for i in range(12)]
    assert [b / a for a, b in itertools.pairwise(blocks)] == [2.0] * 11
    assert scale["encoder.backbone.patch_embed.proj.weight"] == blocks[0] / 2
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays["encoder.backbone.pos_embed"] == 0 and decays["encoder.backbone.blocks.0.attn.qkv.weight"] == 0.1


def resolved(**sections: dict[str, object]) -> RunConfig:
    config = tiny(Path("archive"), Path("out"), **sections)  # type: ignore[arg-type]
    return resolve_archive(resolve_machine(config, device="cpu"), items=48)


def test_average_is_the_documented_recurrence() -> None:
    encoder = create_encoder("resnet10t", spec_of())
    average = WeightAverage(encoder, decay=0.5)
    name = "conv1.0.weight"
    expected = encoder.backbone.state_dict()[name].clone()
    for update in range(12):
        with torch.no_grad():
            encoder.backbone.conv1[0].weight.add_(1.0)
        average.update(encoder)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * encoder.backbone.state_dict()[name]
    torch.testing.assert_close(average.state[name], expected)
    again = WeightAverage(encoder, decay=0.5)
    again.load_state_dict({key: value.clone() for key, value in average.state_dict().items()})
    assert again.updates == 12 and torch.equal(again.state[name], average.state[name])


def test_a_run_with_average_and_parts_resumes_bit_for_bit(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str, minutes: float) -> PretrainConfig:
        return tiny(
            pictures,
            tmp_path / name,
            optim={"average": 0.9, "schedule": "constant"},
            train={"accumulate": 2, "epochs": 1, "checkpoint_minutes": minutes},
        )

    assert pretrain(config("whole", 5)).finished
    interrupted(config("stopped", 0), monkeypatch, step=3)
    assert pretrain(config("stopped", 0), resume=True).finished
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    files = [tmp_path / run / "encoder-average" / "model.safetensors" for run in ("whole", "stopped")]
    averaged, again = (load_file(file) for file in files)
    assert all(torch.equal(averaged[name], again[name]) for name in averaged)
    live = load_file(tmp_path / "whole" / "encoder" / "model.safetensors")
    assert any(not torch.equal(averaged[name], live[name]) for name in averaged)
    assert {load_encoder(folder).name for folder in find_encoders(tmp_path)} == {
        "whole", "whole-average", "stopped", "stopped-average",
    }  # fmt: skip


def test_parts_of_a_batch_give_the_mean_gradient_of_the_parts(pictures: Path, tmp_path: Path) -> None:
    """Two parts of 4: the gradient is the mean of two batches of 4, which is not that of a batch of 8."""
    config = tiny(pictures, tmp_path / "run", train={"epochs": 0, "precision": "32-true", "accumulate": 2})
    pretrain(config)
    run = loop.RunFolder(tmp_path / "run")
    saved = run.reopen(config)
    manifest, adapter = loop.open_archive(run.manifest)
    fabric = make_fabric(saved)
    saved = saved.model_copy(update={"train": saved.train.model_copy(update={"epochs": 1})})
    dataset, batches = make_data(fabric, saved, manifest, adapter, first_step=0)
    batch = next(iter(make_loader(dataset, batches, workers=0)))
    state = build_state(fabric, saved, adapter)
    twin = build_state(fabric, saved, adapter)
    values = train_step(fabric, saved, state, batch)
    assert values["features"].shape[0] == 8
    halves = [twin.module(batch.global_views[:, part], None, seed=0, step=0) for part in (slice(4), slice(4, 8))]
    mean = sum(half.loss for half in halves) / 2
    torch.testing.assert_close(values["loss"], mean.detach())
    mean.backward()
    norm = torch.stack([p.grad.norm() for p in twin.module.parameters()]).norm()
    torch.testing.assert_close(values["gradient_norm"], norm, rtol=1e-4, atol=0)


def test_warnings_say_what_parts_and_small_batches_cost() -> None:
    lines = warnings(resolved(train={"accumulate": 4}), samples=500)
    assert "compares 2 samples at a time, not 8" in lines[0] and "below 64" in lines[1]
    assert warnings(resolved(train={"batch_size": 128}), samples=500) == []
    chosen = resolved(objective={"test": "bhep"}, model={"projector_dim": 64}, train={"batch_size": 128})
    lines = warnings(chosen, samples=500)
    assert "belongs to the test epps_pulley" in lines[0] and "sees nothing in 64 dimensions" in lines[1]
    weak = resolved(objective={"lamb": 0.01}, train={"batch_size": 64})
    assert any("lambda 0.01 is weak with 64 samples" in line for line in warnings(weak, samples=500))
    enough = resolved(objective={"lamb": 0.01}, train={"batch_size": 128})
    assert warnings(enough, samples=500) == []
    with pytest.raises(ConfigError, match="multiple of 6"):
        check_batch(resolved(train={"accumulate": 3}), processes=2)
    quarters = resolved(train={"accumulate": 4, "batch_size": 256}).objective
    assert isinstance(quarters, SettledLeJEPA) and quarters.lamb == pytest.approx(0.01 * 256 / 64)


@pytest.mark.parametrize("options", [{"registers": 4}, {"conv_stem": True}, {"registers": 1, "conv_stem": True}])
def test_vit_options_train_and_come_back_from_the_folder(options: dict[str, object], tmp_path: Path) -> None:
    adapter = data_adapters.create("images", global_size=32, local_size=16, n_local=1)
    encoder = create_encoder(VIT, adapter.spec, **options)  # type: ignore[arg-type]
    plain = create_encoder(VIT, adapter.spec)
    pixels = torch.rand(2, 3, 32, 32)
    tokens = encoder.backbone.forward_features(pixels).shape[1]
    assert tokens == plain.backbone.forward_features(pixels).shape[1] + int(options.get("registers", 0))
    encoder.train()(pixels).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    save_encoder(encoder, adapter, tmp_path / "e")
    loaded = load_encoder(tmp_path / "e")
    with torch.no_grad():
        assert torch.equal(loaded.module(pixels), encoder.eval()(pixels))
        assert loaded.module(torch.rand(1, 3, 16, 16)).shape == (1, 192)  # a local view
    assert randomised(loaded).module.model_args == encoder.model_args
    assert encoder.patch_maps(pixels).shape == (2, 2, 2, 192)


def test_vit_options_are_refused_elsewhere_before_the_scan() -> None:
    with pytest.raises(ConfigError, match="plain vision transformer"):
        resolved(model={"backbone": "resnet10t", "registers": 2})
    with pytest.raises(ConfigError, match="4, 8, 16 or 32 px, not 14"):
        create_encoder("vit_small_patch14_dinov2", spec_of(global_size=28), conv_stem=True)


def test_checkpointed_activations_leave_the_gradient() -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        config = MachineModel(backbone=VIT, drop_path=0.0, freeze=0, checkpointing=checkpointing)
        encoder = build_encoder(config, spec_of())
        assert encoder.backbone.grad_checkpointing is checkpointing
        encoder(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        return [p.grad for p in encoder.parameters() if p.grad is not None]

    for ours, plain in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(ours, plain)
    volumes = data_adapters.create("mri3d", global_size=32, local_size=16, n_local=0).spec
    with pytest.raises(ConfigError, match="no activation checkpointing"):
        settings = MachineModel(backbone="monai:resnet10", checkpointing=True, drop_path=0.0, freeze=0)
        build_encoder(settings, volumes)


def test_a_run_starts_from_another_runs_weights(pictures: Path, tmp_path: Path) -> None:
    pretrain(tiny(pictures, tmp_path / "first", train={"epochs": 1}))
    config = tiny(pictures, tmp_path / "second", model={"init": str(tmp_path / "first")}, train={"epochs": 0})
    pretrain(config)
    assert weights(tmp_path / "second") == weights(tmp_path / "first")
    text = (tmp_path / "second" / "config.yaml").read_text() + (tmp_path / "second/encoder/lejepa_med.json").read_text()
    assert str(tmp_path) not in text
    info = json.loads((tmp_path / "second" / "encoder" / "lejepa_med.json").read_text())
    assert info["training"]["model"]["continued"] is True
    with pytest.raises(ConfigError, match=r"is a resnet10t, this run's is a resnet14t"):
        pretrain(tiny(pictures, tmp_path / "third", model={"backbone": "resnet14t", "init": tmp_path / "first"}))
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        pretrain(tiny(pictures, tmp_path / "fourth", model={"init": tmp_path / "nowhere"}))


def test_compile_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no 'no-such-compiler'"):
        compile_backbone(create_encoder("resnet10t", spec_of()))


@pytest.mark.slow
def test_compiled_backbone_trains_to_the_same_losses(pictures: Path, tmp_path: Path) -> None:
    """Fused kernels add in another order; names of weights stay, so the folder is an ordinary one."""
    pytest.importorskip("torch._inductor")
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    for out, flag in ((plain, False), (compiled, True)):
        pretrain(
            tiny(pictures, out, train={"epochs": 1, "compile": flag, "precision": "32-true"}),
            console=Console(quiet=True),
        )
    # the first step differs by rounding alone; AdamW then divides small gradients by themselves and enlarges it
    rows = list(zip(losses(plain), losses(compiled), strict=True))
    for step, (a, b) in enumerate(rows):
        assert b["loss"] == pytest.approx(a["loss"], rel=5e-2 if step else 1e-5)
    assert load_encoder(compiled).dim == load_encoder(plain).dim
