"""Settings of the objective: what is chosen, and what is refused before anything is read."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lejepa_med.config import PretrainConfig, load_config, save_config
from lejepa_med.errors import ConfigError
from lejepa_med.methods.base import added_terms, regularizer, sigreg
from lejepa_med.methods.lejepa import SettledLeJEPA
from lejepa_med.methods.lejepa.method import objective_of
from lejepa_med.methods.registry import own_settings, settings_class, targets
from lejepa_med.methods.settings import MethodSettings, default_lambda
from lejepa_med.models.architectures import plain_vit_patch
from lejepa_med.objective import SIGReg, SpectralEntropy, VISReg
from lejepa_med.objective.normality import known_tests
from lejepa_med.training.resolve import resolve_archive, resolve_machine
from lejepa_med.training.settings import RunConfig, of_run

VIT = {"backbone": "test_vit"}


def make(objective: dict[str, Any], *, items: int = 10_000, device: str = "cpu", **sections: Any) -> RunConfig:
    base = PretrainConfig(archive=Path("a"), out=Path("b"), modality="images", objective=objective, **sections)
    return resolve_archive(resolve_machine(base, device=device), items=items)


@pytest.mark.parametrize(
    ("objective", "sections", "message"),
    [
        ({"lamb": 1.5}, {}, r"below 1.*additive"),
        ({}, {"views": {"n_global": 1}}, r"only one.*--views\.n-global 2"),
        ({"sigreg_weight": 0.1}, {}, r"SIGReg in its loss already.*--objective\.lamb"),
        ({"method": "vicreg", "variance_hinge": 1}, {}, r"hinge.*already"),
        ({"method": "masked"}, {}, r"'resnet18' cannot be hidden.*vit_small_patch16_224"),
        ({"method": "masked"}, {"model": {"backbone": "swin_tiny_patch4_window7_224"}}, "cannot be hidden"),
        ({"method": "masked"}, {"model": VIT, "views": {"n_local": 2}}, r"global views only.*--views\.n-local 0"),
        ({"method": "masked", "predictor": "none"}, {"model": VIT}, r"predictor.*mlp or transformer"),
        ({"method": "masked"}, {"model": VIT, "views": {"global_size": 48}}, r"fewer than 4 x 4.*global-size 64"),
        (
            {"method": "masked", "mask_ratio": 0.3},
            {"model": VIT},
            r"--objective\.mask-ratio has no effect.*random_token",
        ),
        ({"method": "masked", "target": "pairwise"}, {"model": VIT}, r"--objective\.target has no effect"),
        ({"method": "masked", "predictor": "mlp", "predictor_dim": 64}, {"model": VIT}, r"predictor-dim has no effect"),
        ({"predictor": "mlp"}, {}, r"--objective\.predictor has no effect.*--objective\.method masked"),
        ({"mask": "random_token"}, {}, r"--objective\.mask has no effect"),
        ({"method": "byol", "lamb": 0.1}, {}, r"--objective\.lamb has no effect"),
        ({"method": "byol", "pool": "pooled"}, {}, r"--objective\.pool has no effect"),
        ({"method": "byol", "weighting": "additive"}, {}, r"--objective\.weighting has no effect"),
        ({"method": "dino", "regularizer": "visreg"}, {}, r"--objective\.regularizer has no effect"),
        ({"method": "simclr", "test": "watson"}, {}, r"--objective\.test has no effect.*sigreg-weight"),
        ({"regularizer": "visreg", "test": "watson"}, {}, r"--objective\.test has no effect"),
        ({"regularizer": "visreg", "knots": 9}, {}, r"--objective\.knots has no effect"),
        ({"test": "watson", "t_max": 5}, {}, r"--objective\.t-max has no effect.*epps_pulley"),
        ({"temperature": 0.3}, {}, r"--objective\.temperature has no effect.*simclr"),
        ({"method": "simclr", "teacher_momentum": 0.9}, {}, r"teacher-momentum has no effect.*byol or dino"),
        ({"method": "byol", "prototypes": 64}, {}, r"--objective\.prototypes has no effect.*dino"),
        ({"method": "moco"}, {}, r"no method 'moco'.*--objective\.method with one of lejepa, masked, vicreg"),
        ({"method": "bylo"}, {}, r"no method 'bylo'. Did you mean byol"),
        ({"lamda": 0.1}, {}, r"no setting 'lamda'. Did you mean --objective\.lamb\?"),
        ({"lamb": -1}, {}, r"lamb: Input should be greater than 0"),
        ({"test": "wats"}, {}, r"no test 'wats'.*epps_pulley, cramer_von_mises"),
        ({"code_sha256": "0" * 64}, {}, r"belongs to a method of your own"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_a_remedy(
    objective: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(objective, **sections)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make({"method": "masked", "predictor": "none", "temperature": 1.0}, views={"n_local": 1})
    text = str(caught.value)
    assert all(part in text for part in ("--objective.temperature", "n-local 0", "predictor mlp", "vit_small"))


@pytest.mark.parametrize("method", targets())
def test_resolved_settings_pass_again_and_survive_yaml(method: str, tmp_path: Path) -> None:
    """A resumed run checks its saved settings; what was chosen must not be taken for a mistake."""
    sections = {"model": VIT} if method == "masked" else {}
    config = make({"method": method}, **sections)
    assert resolve_archive(resolve_machine(config, device="cpu"), items=10_000) == config
    save_config(config, tmp_path / "config.yaml")
    assert of_run(load_config(tmp_path / "config.yaml")) == config
    values = config.objective.model_dump(exclude={"code_sha256"})
    assert ("lamb" in values) == (method in ("lejepa", "masked")) and None not in values.values()


def test_baselines_take_their_papers_projector_unless_told() -> None:
    heads = {"vicreg": (3, 2048), "barlow_twins": (3, 2048), "simclr": (2, 128), "byol": (2, 256), "dino": (3, 256)}
    for method, (depth, dim) in heads.items():
        model = make({"method": method}).model
        assert settings_class(method)[0].head == (model.projector_depth, model.projector_dim) == (depth, dim)
    assert make({"method": "vicreg"}, model={"projector_dim": 100}).model.projector_dim == 100
    default = make({}).model
    assert (default.projector_depth, default.projector_dim) == (3, 64)


def test_the_default_lambda_keeps_the_ratio_of_the_terms() -> None:
    def lamb(items: int = 10_000, **objective: Any) -> float:
        views = {"n_global": 4, "n_local": 0}
        chosen = make(objective, items=items, views=views, train={"batch_size": 256}).objective
        assert isinstance(chosen, SettledLeJEPA)
        return chosen.lamb

    assert lamb() == default_lambda(4, 256) == 0.02
    assert lamb(pool="pooled") == pytest.approx(0.005)  # the statistic of pooled views is 4 times as large
    assert lamb(weighting="additive") == pytest.approx(0.02 / 0.98)
    assert lamb(regularizer="visreg") == 0.6 and lamb(items=2_000_000, regularizer="visreg") == 0.9
    assert lamb(regularizer="spectral_entropy") == 0.5
    assert lamb(lamb=0.3, pool="pooled") == 0.3


def test_masked_sees_one_whole_view_through_a_transformer_predictor() -> None:
    config = make({"method": "masked"}, model=VIT)
    assert (config.views.n_global, config.views.n_local) == (1, 0)
    assert config.objective.model_dump()["predictor"] == "transformer"
    assert make({"method": "masked"}, model=VIT, views={"n_global": 3}).views.n_global == 3
    with pytest.raises(ConfigError, match=r"stem has seen their neighbours.*Leave out --model\.conv-stem"):
        make({"method": "masked"}, model={**VIT, "conv_stem": True})
    assert plain_vit_patch("test_vit") == 16
    assert plain_vit_patch("resnet18") is None and plain_vit_patch("monai:vit") is None


def test_switches_build_what_they_name() -> None:
    def objective(**settings: Any) -> MethodSettings:
        return make(settings).objective

    def lejepa(**settings: Any) -> SettledLeJEPA:
        found = objective(**settings)
        assert isinstance(found, SettledLeJEPA)
        return found

    regularizers = {"sigreg": SIGReg, "visreg": VISReg, "spectral_entropy": SpectralEntropy}
    for name, kind in regularizers.items():
        assert type(regularizer(lejepa(regularizer=name))) is kind
    loss = objective_of(lejepa(target="all_mean", pool="pooled", weighting="additive", lamb=3))
    assert (loss.target, loss.pool, loss.weigh.kind, loss.lamb) == ("all_mean", "pooled", "additive", 3)
    assert added_terms(objective()) is None
    added = added_terms(objective(method="byol", sigreg_weight=0.1, variance_hinge=2, slices=7))
    assert added is not None and isinstance(added.sigreg, SIGReg) and added.sigreg.slices == 7
    assert (added.sigreg_weight, added.hinge_weight) == (0.1, 2)
    only = added_terms(objective(variance_hinge=2))
    assert only is not None and only.sigreg is None


@pytest.mark.parametrize("name", known_tests())
def test_every_named_test_can_be_built(name: str) -> None:
    assert callable(sigreg(make({"test": name}).objective))


def test_settings_of_earlier_releases_are_read(tmp_path: Path) -> None:
    """They wrote the settings of all methods into config.yaml, those without effect at their defaults."""
    config = make({"method": "byol", "teacher_momentum": 0.9})
    save_config(config, tmp_path / "config.yaml")
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    former = {"lamb": None, "target": "global_mean", "pool": "per_view", "mask": "multi_block", "mask_ratio": 0.6}
    tree["objective"] |= {**former, "predictor": "none", "predictor_dim": 192, "temperature": 0.1, "prototypes": 4096}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    found = load_config(tmp_path / "config.yaml")
    assert of_run(found) == config
    assert own_settings(found.objective) == config.objective.model_dump(mode="json")
