"""The settings of a run after resolution: the same tree as `PretrainConfig`, without open values."""

from pydantic import SerializeAsAny, ValidationError

from lejepa_med.config import (
    MachineModel,
    PretrainConfig,
    ResolvedModel,
    ResolvedOptim,
    ResolvedTrain,
    ResolvedVector,
    ResolvedViews,
    issues,
)
from lejepa_med.errors import ConfigError
from lejepa_med.methods.registry import read, refuse
from lejepa_med.methods.settings import MethodSettings

# values of settings that a run of an earlier release did not have yet
BEFORE: dict[str, dict[str, int]] = {"vector": {"views": 1, "layers": 1}, "model": {"freeze": 0}}


class MachineConfig(PretrainConfig):
    """Settings with all that the machine decides, from `resolve_machine`; enough to scan an archive."""

    views: ResolvedViews
    vector: ResolvedVector
    model: MachineModel
    objective: SerializeAsAny[MethodSettings]
    optim: ResolvedOptim
    train: ResolvedTrain


class RunConfig(MachineConfig):
    """Settings that a run trains with, from `resolve_archive` or from its folder."""

    model: ResolvedModel


def of_run(config: PretrainConfig) -> RunConfig:
    """Return the settings that a run folder holds. This loads the method, also where it is the user's own file.

    Raises:
        ConfigError: the folder's settings are not those of a run, or its method is not there.
    """
    tree = {name: getattr(config, name).model_dump() for name in ("views", "vector", "model", "optim", "train")}
    for section, values in BEFORE.items():
        tree[section] |= {name: value for name, value in values.items() if tree[section][name] is None}
    tree["vector"]["size"] = tree["vector"]["size"] or tree["views"]["global_size"]
    method, found = read(config.objective)
    refuse(found)
    rest = {name: getattr(config, name) for name in PretrainConfig.model_fields.keys() - tree.keys()}
    try:
        run = MachineConfig(**rest | tree | {"objective": method})
        return RunConfig(**rest | tree | {"objective": settled(run, items=0)})
    except ValidationError as error:
        raise ConfigError(
            f"{config.out} does not hold the settings of a run: {issues(error)}.",
            remedy="Give the folder of a run of: lejepa-med pretrain",
        ) from error


def settled(config: MachineConfig, *, items: int) -> MethodSettings:
    """Return the method's settings with what follows from the archive; `items`: its records."""
    seen = config.train.batch_size // config.train.accumulate
    return config.objective.for_archive(views=config.views.n_global + config.views.n_local, seen=seen, items=items)
