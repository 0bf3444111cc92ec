"""Methods by name: built-in ones, those of lejepa_med.research, of installed plug-ins, and `./file.py:Class`.

Each name leads to the class of a method's settings, which knows how to build the rest.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from lejepa_med.config import ObjectiveConfig, is_own, issues
from lejepa_med.errors import ConfigError
from lejepa_med.methods.settings import Issue, MethodSettings

BUILT_IN = {
    "lejepa": "lejepa_med.methods.lejepa:LeJEPASettings",
    "masked": "lejepa_med.methods.masked:MaskedSettings",
}
RESEARCH = "lejepa_med.research"  # by its name: nothing else of lejepa_med imports it
ENTRY_POINT_GROUP = "lejepa_med.methods"
WRITTEN = ("predictor", "none")  # by earlier releases into the config.yaml of every method but masked


def targets() -> dict[str, str]:
    """Return `module:Class` of each method by its name, the built-in ones first."""
    research: dict[str, str] = import_module(RESEARCH).METHODS
    plugins = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return BUILT_IN | research | {k: v for k, v in plugins.items() if k not in BUILT_IN}


def settings_class(name: str, *, sha256: str | None = None) -> tuple[type[MethodSettings], str | None]:
    """Return the class of a method's settings, and the SHA-256 of its file where it is `./file.py:Class`.

    Args:
        name: of the method.
        sha256: that the file must have; it is not run otherwise.

    Raises:
        ConfigError: no such method, a file that cannot be used, or a class that declares no method.
    """
    if is_own(name):
        from lejepa_med.models.own import load_code

        code = load_code(name, sha256=sha256, what="method")
        found, digest = code.make, code.sha256
    else:
        found, digest = _installed(name), None
        if sha256 is not None:
            raise ConfigError(
                f"--objective.code-sha256 belongs to a method of your own, and {name} is none.",
                remedy="Leave it out, or give --objective.method ./file.py:Class.",
            )
    if not (isinstance(found, type) and issubclass(found, MethodSettings)):
        raise ConfigError(
            f"{name} declares no method: it is not derived from lejepa_med.methods.settings.MethodSettings.",
            remedy="Name the class of its settings: --objective.method ./file.py:CLASS (docs/method.md).",
        )
    return found, digest


def _installed(name: str) -> Any:
    known = targets()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        raise ConfigError(
            f"There is no method '{name}'.",
            remedy=(f"Did you mean {close[0]}? " if close else "")
            + f"Use --objective.method with one of {', '.join(known)}, or ./file.py:Class.",
        )
    module, _, kind = known[name].rpartition(":")
    try:
        return getattr(import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The method '{name}' ({known[name]}) cannot be loaded: {error}.",
            remedy=f"Correct what this shows: python -c 'import {module}'",
        ) from error


def read(objective: ObjectiveConfig, *, slices: int | None = None) -> tuple[MethodSettings, list[Issue]]:
    """Return the settings as those of their method, and what is wrong with settings that it does not have.

    Args:
        objective: as it was given.
        slices: directions of SIGReg where none are given; None: the method's default.

    Raises:
        ConfigError: no such method, or a value that it does not accept.
    """
    kind, digest = settings_class(objective.method, sha256=objective.code_sha256)
    given = {name: value for name, value in objective.model_dump().items() if value is not None}
    foreign = {name: given.pop(name) for name in given.keys() - kind.model_fields.keys()}
    if slices is not None:
        given.setdefault("slices", slices)
    try:
        settings = kind(**given | {"code_sha256": digest})
    except ValidationError as error:
        raise ConfigError(
            f"Settings of the method {objective.method} are not accepted: {issues(error)}.",
            remedy="Correct them, each as --objective.NAME, or leave them out.",
        ) from error
    return settings, [issue for name, value in sorted(foreign.items()) for issue in _foreign(kind, name, value)]


def refuse(found: Iterable[Issue]) -> None:
    """Refuse settings that do not go together, all at once.

    Raises:
        ConfigError: there are some.
    """
    found = list(found)
    if found:
        remedies = dict.fromkeys(remedy for _, remedy in found)
        raise ConfigError(" ".join(cause for cause, _ in found), remedy=" ".join(remedies))


def own_settings(objective: ObjectiveConfig) -> dict[str, Any]:
    """Return the settings that the method has, without those that earlier releases wrote for every other one.

    A method whose code is not installed, or is a file, is not loaded: its settings come back as they are.
    """
    tree = objective.model_dump(mode="json")
    if objective.method not in targets():
        return tree
    try:
        kind, _ = settings_class(objective.method)
    except ConfigError:
        return tree
    return {name: value for name, value in tree.items() if name in kind.model_fields}


def _foreign(kind: type[MethodSettings], name: str, value: Any) -> Iterator[Issue]:
    """Yield what is wrong with a setting that this method does not have; the default of another method's is none."""
    flag = "--objective." + name.replace("_", "-")
    owners = {}
    for other in targets():
        with suppress(ConfigError):  # a plug-in that cannot be loaded is not this run's
            fields = settings_class(other)[0].model_fields
            if name in fields:
                owners[other] = fields[name].default
    if (name, value) == WRITTEN or value in owners.values():
        return
    if owners:
        remedy = f"or set --objective.method {' or '.join(owners)}."
        yield f"{flag} has no effect with these settings.", f"Leave out {flag}, {remedy}"
        return
    close = get_close_matches(name, kind.model_fields, n=1)
    meant = f"Did you mean --objective.{close[0].replace('_', '-')}? " if close else f"Leave out {flag}. "
    names = ", ".join(n for n in kind.model_fields if n not in ObjectiveConfig.model_fields)
    yield f"The method has no setting '{name}'.", f"{meant}Its settings are {names}."
