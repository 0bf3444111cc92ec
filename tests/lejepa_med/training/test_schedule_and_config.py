"""Learning rate, parameter groups, chosen defaults, and one set of names for YAML, Python and command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from data_adapters.registry import load_class
from lejepa_med.cli import main
from lejepa_med.config import OptimConfig, PretrainConfig, differences, load_config, save_config
from lejepa_med.errors import ConfigError
from lejepa_med.methods.settings import default_lambda
from lejepa_med.training.optimizer import learning_rate, make_optimizer
from lejepa_med.training.resolve import resolve_archive, resolve_machine


def test_warm_up_peak_and_end() -> None:
    config = OptimConfig(lr=2e-3, warmup=0.1)
    rates = [learning_rate(step, steps=100, config=config) for step in range(100)]
    assert rates[0] == pytest.approx(2e-4) and rates[9] == pytest.approx(2e-3)
    assert max(rates) == pytest.approx(2e-3)
    assert rates[-1] == pytest.approx(2e-6)  # lr / 1000; the reference's minimal script ends at lr / 2
    assert rates[10:] == sorted(rates[10:], reverse=True) and len(set(rates[10:])) == 90


def test_small_peak_never_rises() -> None:
    """An absolute eta_min of 1e-3 would make a rate of 5e-4 rise; ours is a fraction."""
    rates = [learning_rate(step, steps=50, config=OptimConfig(lr=5e-4)) for step in range(50)]
    assert max(rates) == pytest.approx(5e-4) and rates[-1] < 1e-6


def test_no_decay_on_norms_biases_and_positions() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    decayed, plain = make_optimizer(model, OptimConfig(lr=1.0, weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    names = {id(p): name for name, p in model.named_parameters()}
    plain_names = {names[id(p)] for p in plain["params"]}
    assert {"pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias"} <= plain_names
    assert len(plain["params"]) + len(decayed["params"]) == len(names)


@pytest.mark.parametrize(
    ("views", "batch", "expected"),
    [(8, 256, 0.05), (10, 512, 0.05), (4, 256, 0.02), (2, 128, 0.01), (4, 64, 0.08), (8, 16, 0.2)],
)
def test_default_lambda(views: int, batch: int, expected: float) -> None:
    assert default_lambda(views, batch) == pytest.approx(expected)


def test_defaults_by_machine_and_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    base = PretrainConfig(archive=Path("a"), out=Path("b"), modality="mri")
    cpu, gpu = resolve_machine(base, device="cpu"), resolve_machine(base, device="cuda")
    assert (cpu.model.backbone, cpu.views.n_global, cpu.views.n_local) == ("resnet18", 4, 0)
    assert (gpu.model.backbone, gpu.views.n_global, gpu.views.n_local) == ("vit_small_patch16_224", 2, 6)
    assert (gpu.views.global_size, gpu.views.local_size, gpu.optim.lr, gpu.optim.weight_decay) == (224, 96, 5e-4, 5e-2)
    assert gpu.train.precision == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert resolve_machine(base, device="cuda").train.precision == "16-mixed"  # a V100 or T4
    small = resolve_archive(cpu, items=100)
    assert (small.train.batch_size, small.train.epochs, small.model.projector_hidden) == (64, 100, 1024)
    assert small.objective.lamb == pytest.approx(0.08)
    large = resolve_archive(gpu, items=10**6)
    assert (large.train.batch_size, large.model.projector_hidden, large.objective.lamb) == (256, 2048, 0.05)


def test_a_recipe_is_chosen_by_the_machine_and_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    base = PretrainConfig(archive=Path("a"), out=Path("b"), modality="images")
    assert resolve_machine(base, device="cpu").recipe == "laptop"
    assert resolve_machine(base, device="cuda").recipe == "workstation"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert resolve_machine(base, device="cpu").recipe == "laptop"
    assert resolve_machine(base, device="cuda").recipe == "cluster"
    named = resolve_machine(base.model_copy(update={"recipe": "workstation"}), device="cpu")
    assert (named.recipe, named.model.backbone, named.views.global_size) == (
        "workstation",
        "vit_small_patch16_224",
        224,
    )
    assert (named.train.batch_size, named.objective.slices) == (256, 1024)
    own = base.model_copy(update={"recipe": "workstation", "train": base.train.model_copy(update={"batch_size": 32})})
    assert resolve_machine(own, device="cpu").train.batch_size == 32


def test_the_modality_says_how_large_views_are_on_a_small_machine() -> None:
    for modality in ("mri", "histology", "galaxy", "images"):
        base = PretrainConfig(archive=Path("a"), out=Path("b"), modality=modality)
        assert resolve_machine(base, device="cpu").views.global_size == load_class(modality).small_size


def test_given_values_are_kept() -> None:
    given = PretrainConfig(
        archive=Path("a"),
        out=Path("b"),
        modality="mri",
        views={"n_global": 3, "global_size": 48},
        objective={"lamb": 0.3},
        train={"batch_size": 12, "epochs": 7, "precision": "32-true"},
    )
    resolved = resolve_archive(resolve_machine(given, device="cuda"), items=9)
    assert differences(given, resolved) == []


def test_yaml_round_trip(tmp_path: Path) -> None:
    options = {"bands": "g,r,z", "coords": "/a/b/coords"}
    config = PretrainConfig(archive=Path("a/b"), out=Path("c"), modality="galaxy", data={"options": options})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    # what can be shown to others names no place; without its local half it is not enough to run
    assert "a/b" not in (tmp_path / "config.yaml").read_text() and "a/b" in (tmp_path / "local.yaml").read_text()
    (tmp_path / "local.yaml").unlink()
    with pytest.raises(ConfigError, match="archive: Field required"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("archive: a\nout: b\nmodality: mri\ntrain: {epoch: 3}\noptim: {lr: -1}\n")
    with pytest.raises(ConfigError, match=r"optim\.lr.*train\.epoch|train\.epoch.*optim\.lr"):
        load_config(tmp_path / "config.yaml")  # all issues at once


def test_flags_are_the_names_of_the_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the command line passes on equals the Python configuration with the same names."""
    seen: list[PretrainConfig] = []

    class Result:
        finished, folder = True, tmp_path

    def capture(config: PretrainConfig, **_flags: bool) -> Result:
        seen.append(config)
        return Result()

    monkeypatch.setattr("lejepa_med.training.loop.pretrain", capture)
    flags = f"pretrain scans --modality mri --out {tmp_path} --batch-size 32 --objective.lamb 0.1 --no-data.verify"
    main([*flags.split(), "--views.n-local", "0", "-o", "plane=coronal"])
    expected = PretrainConfig(
        archive=Path("scans"),
        out=tmp_path,
        modality="mri",
        train={"batch_size": 32},
        objective={"lamb": 0.1},
        data={"verify": False, "options": {"plane": "coronal"}},
        views={"n_local": 0},
    )
    assert seen == [expected]
    assert seen[0].train.model_fields_set == {"batch_size"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "nowhere", "--modality", "images", "--out", "OUT"], "does not exist"),
        (["pretrain", "nowhere", "--modality", "xray", "--out", "OUT"], "no modality 'xray'"),
        (["pretrain", "nowhere", "--modality", "images"], "out"),
        (["pretrain", "x", "--modality", "images", "--out", "OUT", "--epochs", "many"], "integer"),
        (["embed", "nowhere", "nowhere", "--out", "OUT"], "not an encoder folder"),
        (["serve", "--port", "99999", "runs"], "65535"),
        (["--modality", "mri"], "See lejepa-med --help."),
        (["scan", "nowhere", "--modality", "mri", "--oot", "OUT"], "See lejepa-med scan --help."),
        (["key"], "lejepa-med key create, lejepa-med key list or lejepa-med key revoke"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in errors and "Traceback" not in errors


def test_help_answers_fast_without_torch() -> None:
    code = "import sys; from lejepa_med.cli import main\n"
    code += "try: main(['pretrain', '--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--epochs" in done.stdout


def test_cuda_without_cuda_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    from lejepa_med.training.device import make_fabric

    with pytest.raises(ConfigError, match=r"--train\.accelerator cpu"):
        make_fabric(PretrainConfig(archive=tmp_path, out=tmp_path, modality="images", train={"accelerator": "cuda"}))
