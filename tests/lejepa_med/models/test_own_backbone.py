"""A backbone of one's own, `./file.py:Class`: trained, saved with its file, loaded, refused where it has changed."""

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data_adapters
from lejepa_med.cli import main
from lejepa_med.config import load_config, read_settings
from lejepa_med.errors import ConfigError, EncoderError
from lejepa_med.models.encoder import Encoder, create_encoder
from lejepa_med.models.folder import INFO, fingerprint, load_encoder, randomised, save_encoder
from lejepa_med.models.own import UntrustedCodeError
from lejepa_med.study.diff import diff
from lejepa_med.training.loop import pretrain
from tests.lejepa_med.runs import interrupted, losses, tiny, weights

DOCS = Path(__file__).parents[3] / "docs" / "training.md"
[PRINTED] = re.findall(r"```python\n(# mynet\.py\n.*?)```", DOCS.read_text(), flags=re.DOTALL)


def own(folder: Path, text: str = PRINTED) -> str:
    """The name of a class Net whose file has this text."""
    folder.mkdir(exist_ok=True)
    (folder / "mynet.py").write_text(text)
    return f"{folder / 'mynet.py'}:Net"


def net(body: str) -> str:
    """A file with a class Net whose constructor and forward are `body`."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    return f"import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n{lines}\n"


def spec_of(**options: Any) -> data_adapters.Adapter:
    return data_adapters.create("images", **{"global_size": 32, "n_global": 2, "n_local": 0, **options})


def test_the_printed_example_is_short_and_trains_by_the_command_of_a_user(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(PRINTED.splitlines()) < 20
    own(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["pretrain", str(pictures), "--modality", "images", "--backbone", "./mynet.py:Net", "--out", "run"]
    flags = "--views.n-global 2 --views.global-size 32 --epochs 1 --batch-size 8 --data.workers 0"
    main([*command, *flags.split(), "--model.projector-hidden", "32", "--train.accelerator", "cpu"])
    folder = tmp_path / "run" / "encoder"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        INFO,
        "model.safetensors",
        "mynet.py",
        "README.md",
    }
    sha = hashlib.sha256(PRINTED.encode()).hexdigest()
    info = json.loads((folder / INFO).read_text())
    assert info["backbone"] == "mynet.py:Net" and info["code"] == {"file": "mynet.py", "sha256": sha}
    assert info["dim"] == 128 and info["model_args"] == {"in_chans": 3}
    assert sha in (folder / "README.md").read_text()
    assert str(tmp_path) not in "".join(
        path.read_text() for path in folder.glob("*.[jm]*") if path.suffix != ".safetensors"
    )
    assert "mynet.py:Net" in (tmp_path / "run" / "report.html").read_text()
    shared = (tmp_path / "run" / "config.yaml").read_text()
    assert f"code_sha256: {sha}" in shared and "backbone: mynet.py:Net" in shared and str(tmp_path) not in shared
    assert load_config(tmp_path / "run" / "config.yaml").model.backbone == str(tmp_path / "mynet.py") + ":Net"


def test_the_folder_is_complete_and_gives_the_same_vectors_elsewhere(pictures: Path, tmp_path: Path) -> None:
    config = tiny(pictures, tmp_path / "run", model={"backbone": own(tmp_path / "code")}, train={"epochs": 1})
    pretrain(config)
    shutil.rmtree(tmp_path / "code")
    shutil.move(tmp_path / "run" / "encoder", tmp_path / "elsewhere")
    encoder = load_encoder(tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").glob("__pycache__"))
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    vectors = encoder.embed(list(pixels[:, None]))
    # the bare weights, as the model card says
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0].replace(
        "PATH_OF_THIS_FOLDER", str(tmp_path / "elsewhere")
    )
    names: dict[str, Any] = {}
    exec(code, names)
    bare = names["model"].eval()(encoder.module.normalize(pixels)).mean((2, 3))
    assert torch.allclose(torch.from_numpy(vectors), bare, atol=1e-6)
    control = randomised(encoder)
    assert control.dim == 128 and not np.allclose(control.embed(list(pixels[:, None])), vectors)
    script = (
        f"from lejepa_med.models.folder import load_encoder; print(load_encoder({str(tmp_path / 'elsewhere')!r}).dim)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout == "128\n"


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    adapter = spec_of()
    encoder = create_encoder(own(tmp_path), adapter.spec)
    save_encoder(encoder, adapter, tmp_path / "e")
    before = fingerprint(json.loads((tmp_path / "e" / INFO).read_text()))
    with pytest.raises(UntrustedCodeError, match=r"brings its own code \(mynet\.py\)"):
        load_encoder(tmp_path / "e", trusted=False)
    (tmp_path / "e" / "mynet.py").write_text(PRINTED.replace("nn.ReLU", "nn.GELU"))
    with pytest.raises(EncoderError, match=r"mynet\.py has changed since the encoder was saved"):
        load_encoder(tmp_path / "e")
    (tmp_path / "e" / "mynet.py").unlink()
    with pytest.raises(EncoderError, match=r"lacks mynet\.py"):
        load_encoder(tmp_path / "e")
    # the same weights in another file are another encoder: its vectors differ
    own(tmp_path, PRINTED.replace("nn.ReLU", "nn.GELU"))
    other = create_encoder(str(tmp_path / "mynet.py:Net"), adapter.spec)
    other.load_state_dict(encoder.state_dict())
    save_encoder(other, adapter, tmp_path / "other")
    assert fingerprint(json.loads((tmp_path / "other" / INFO).read_text())) != before


def test_a_file_that_is_edited_during_training_stays_what_it_was(pictures: Path, tmp_path: Path) -> None:
    name = own(tmp_path / "code")
    encoder = create_encoder(name, spec_of().spec)
    own(tmp_path / "code", "raise SystemExit")
    save_encoder(encoder, spec_of(), tmp_path / "e")
    assert (tmp_path / "e" / "mynet.py").read_text() == PRINTED
    assert load_encoder(tmp_path / "e").dim == 128


def test_resume_goes_on_bit_for_bit_and_refuses_a_changed_file(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny(
        pictures, tmp_path / "whole", model={"backbone": own(tmp_path / "code")}, train={"checkpoint_minutes": 0}
    )
    pretrain(whole)
    part = whole.model_copy(update={"out": tmp_path / "part"})
    interrupted(part, monkeypatch, step=7)
    own(tmp_path / "code", PRINTED + "# a note\n")
    with pytest.raises(ConfigError, match=r"mynet\.py is not the file that this run began with"):
        pretrain(part, resume=True)
    shutil.rmtree(tmp_path / "code")  # the copy in the encoder folder is the file as well
    pretrain(part, resume=True)
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")
    moved = part.model_copy(update={"model": part.model.model_copy(update={"backbone": own(tmp_path / "moved")})})
    assert pretrain(moved, resume=True).finished
    renamed = PRINTED.replace("class Net", "class Other")
    (tmp_path / "moved" / "mynet.py").write_text(renamed)
    other = str(tmp_path / "moved" / "mynet.py:Other")
    with pytest.raises(ConfigError, match="A resumed run keeps its settings"):
        pretrain(part.model_copy(update={"model": part.model.model_copy(update={"backbone": other})}), resume=True)


def test_diff_shows_another_file_and_no_folder(pictures: Path, tmp_path: Path) -> None:
    for number, text in enumerate((PRINTED, PRINTED.replace("width=64", "width=32"))):
        name = own(tmp_path / f"code{number}", text)
        pretrain(tiny(pictures, tmp_path / f"run{number}", model={"backbone": name}, train={"epochs": 1}))
    found = {name: (one, other) for name, one, other in diff(tmp_path / "run0", tmp_path / "run1").settings}
    assert [hash_[:16] for hash_ in found["model.code_sha256"]] == [
        hashlib.sha256((tmp_path / f"code{n}" / "mynet.py").read_bytes()).hexdigest()[:16] for n in (0, 1)
    ]
    assert str(tmp_path) not in str(found.get("model.backbone", ""))
    assert read_settings(tmp_path / "run0" / "config.yaml")["model"]["backbone"] == str(tmp_path / "code0/mynet.py:Net")


def test_dry_run_prints_the_hash_and_leaves_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(pictures, tmp_path / "run", model={"backbone": own(tmp_path / "code")})
    pretrain(config, dry_run=True)
    said = re.sub(r"\s+", "", capsys.readouterr().out)
    assert "mynet.py:Net" in said and hashlib.sha256(PRINTED.encode()).hexdigest()[:16] in said
    assert str(tmp_path / "code") not in said
    assert not (tmp_path / "run" / "encoder").exists()


def test_init_takes_the_file_of_the_run_along_or_a_new_one(pictures: Path, tmp_path: Path) -> None:
    name = own(tmp_path / "code")
    pretrain(tiny(pictures, tmp_path / "first", model={"backbone": name}, train={"epochs": 1}))
    first = load_encoder(tmp_path / "first")
    shutil.rmtree(tmp_path / "code")
    model = {"backbone": None, "init": tmp_path / "first"}
    pretrain(tiny(pictures, tmp_path / "second", model=model, train={"epochs": 0}))
    second = load_encoder(tmp_path / "second")
    for one, other in zip(
        first.module.backbone.state_dict().values(), second.module.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert second.info["origin"][0]["architecture"] == "mynet.py:Net" and str(tmp_path) not in json.dumps(second.info)
    wide = {"backbone": own(tmp_path / "wide", PRINTED.replace("width=64", "width=32")), "init": tmp_path / "first"}
    with pytest.raises(ConfigError, match=r"do not fit this run's encoder \(stages"):
        pretrain(tiny(pictures, tmp_path / "third", model=wide))
    noted = {
        "backbone": own(tmp_path / "noted", PRINTED + "# a note\n"),
        "init": tmp_path / "first/encoder/model.safetensors",
    }
    pretrain(tiny(pictures, tmp_path / "fourth", model=noted, train={"epochs": 0}))
    assert load_encoder(tmp_path / "fourth").info["code"]["sha256"] != first.info["code"]["sha256"]
    with pytest.raises(ConfigError, match=r"is a mynet\.py:Net, this run's is a resnet10t"):
        pretrain(tiny(pictures, tmp_path / "fifth", model={"init": tmp_path / "first"}))


VECTOR = """
def __init__(self, in_chans, img_size):
    super().__init__()
    self.fc = nn.Linear(in_chans * img_size**2, 24)
def forward(self, x):
    return self.fc(x.flatten(1))
"""
TOKENS = """
convolutional = False
def __init__(self, in_chans=3, drop_path_rate=0.5):
    super().__init__()
    self.patches = nn.Conv2d(in_chans, 32, 8, stride=8)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
def forward(self, x):
    return self.blocks(self.patches(x).flatten(2).transpose(1, 2))
"""


@pytest.mark.parametrize(
    ("body", "dim", "args"),
    [(VECTOR, 24, {"in_chans": 3, "img_size": 32}), (TOKENS, 32, {"in_chans": 3, "drop_path_rate": 0.0})],
)
def test_vectors_and_tokens_train_with_the_arguments_that_the_class_names(
    pictures: Path, tmp_path: Path, body: str, dim: int, args: dict[str, Any]
) -> None:
    pretrain(tiny(pictures, tmp_path / "run", model={"backbone": own(tmp_path, net(body))}, train={"epochs": 1}))
    found = load_encoder(tmp_path / "run")
    assert found.dim == dim and found.info["model_args"] == args
    rate = load_config(tmp_path / "run" / "config.yaml").optim.lr
    assert rate == (5e-4 if body is TOKENS else 2e-3)


def test_a_network_for_volumes(tmp_path: Path) -> None:
    volume = PRINTED.replace("2d", "3d")
    adapter = data_adapters.create("mri3d", global_size=32, n_global=2, n_local=0)
    save_encoder(create_encoder(own(tmp_path, volume), adapter.spec), adapter, tmp_path / "e")
    encoder = load_encoder(tmp_path / "e")
    assert encoder.embed([torch.rand(2, 1, 32, 32, 32)]).shape == (1, 128)
    with pytest.raises(ConfigError, match=r"Net of mynet\.py fails on a batch of shape \(2, 3, 32, 32\)"):
        create_encoder(str(tmp_path / "mynet.py:Net"), spec_of().spec)


def layers(forward: str, extra: str = "") -> str:
    start = "def __init__(self):\n    super().__init__()\n    self.conv = nn.Conv2d(3, 8, 3)\n"
    return net(f"{start}{extra}def forward(self, x):\n    {forward}")


WRONG = {
    "scalar": (
        layers("return self.conv(x).mean()"),
        r"Net of mynet\.py gives shape \(\) for a batch of shape \(2, 3, 32, 32\)",
    ),
    "one": (layers("return self.conv(x).mean((1, 2, 3))"), r"gives shape \(2,\).*one vector of at least 2 numbers"),
    "tuple": (layers("return self.conv(x), x"), r"gives a tuple for a batch"),
    "batch": (layers("return self.conv(x).mean((2, 3))[:1]"), r"gives shape \(1, 8\)"),
    "random": (layers("return nn.functional.dropout(self.conv(x).mean((2, 3)))"), "other vectors for the same images"),
    "lost": (
        layers("return self.conv(x).mean((2, 3)) @ self.w", "    self.w = torch.randn(8, 8)\n"),
        "its state_dict lacks",
    ),
    "no weights": (net("def forward(self, x):\n    return x.mean((2, 3))"), "has no weights to train"),
    "no gradient": (layers("return self.conv(x).mean((2, 3)).detach()"), "gives vectors without gradients"),
    "not finite": (layers("return self.conv(x).mean((2, 3)) / 0"), "numbers that are not finite"),
    "fails": (layers("return self.missing(x)"), r"fails on a batch of shape \(2, 3, 32, 32\): AttributeError"),
    "argument": (
        net("def __init__(self, depth):\n    super().__init__()"),
        r"Net\(\) of mynet\.py fails: TypeError.*depth",
    ),
    "no module": ("def Net():\n    return 3\n", r"gives a int, not a torch\.nn\.Module"),
    "syntax": ("class Net(:\n", r"mynet\.py, line 1 cannot be loaded: SyntaxError"),
    "import": ("import no_such_package\n", r"mynet\.py cannot be loaded: ModuleNotFoundError"),
    "beside": ("import helper\n", r"mynet\.py imports helper, which lies beside it"),
    "no class": ("x = 1\n", r"mynet\.py has no class 'Net'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_at_the_start(case: str, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("x = 1\n")
    text, message = WRONG[case]
    with pytest.raises(ConfigError, match=message) as error:
        create_encoder(own(tmp_path, text), spec_of().spec)
    assert error.value.remedy


def test_views_of_two_sizes_must_give_one_length(tmp_path: Path) -> None:
    name = own(tmp_path, layers("return self.conv(x).mean((1, 2))"))
    with pytest.raises(ConfigError, match="vectors of 14 and 30 numbers for views of 32 and 16"):
        create_encoder(name, spec_of(n_local=2, local_size=16).spec)


def test_the_check_leaves_the_random_numbers_and_the_network_alone(tmp_path: Path) -> None:
    name = own(tmp_path)
    torch.manual_seed(3)
    plain = runpy.run_path(str(tmp_path / "mynet.py"))["Net"](in_chans=3)
    after = torch.rand(1)
    torch.manual_seed(3)
    encoder: Encoder = create_encoder(name, spec_of().spec)
    assert torch.equal(torch.rand(1), after) and encoder.training
    for one, other in zip(plain.state_dict().values(), encoder.backbone.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("backbone", "extra", "message"),
    [
        ("./mynet.py", {}, "names a file, but not the class in it"),
        ("./absent.py:Net", {}, r"absent\.py cannot be read"),
        ("resnet10t", {"code_sha256": "0" * 64}, "belongs to a backbone of your own"),
        ("./mynet.py:Net", {"code_sha256": "0" * 64}, "is not the file that this run began with"),
        ("./mynet.py:Net", {"registers": 4}, "takes no register tokens"),
        ("./mynet.py:Net", {"drop_path": 0.2}, "takes no drop_path_rate"),
    ],
)
def test_settings_that_do_not_go_together(
    backbone: str, extra: dict[str, Any], message: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        pretrain(tiny(pictures, tmp_path / "run", model={"backbone": backbone, **extra}))
