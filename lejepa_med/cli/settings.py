"""What commands share: short flags for the common settings, modality options as NAME=VALUE, and the console."""

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import CLI_SUPPRESS, BaseSettings

from lejepa_med.config import (
    SETTLED,
    Columns,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    PretrainConfig,
    Section,
    TrainConfig,
)
from lejepa_med.errors import ConfigError

SECTIONS: dict[str, type[Section]] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}
SHORT = {  # short name -> place in the tree of settings
    **{name: f"data.{name}" for name in ("catalog", "group_column", "label_column", "split", "exclude", "allow_leak")},
    **{name: f"model.{name}" for name in ("init", "backbone")},
    **{name: f"train.{name}" for name in ("minutes", "epochs", "batch_size", "seed")},
}
FLAGS = ("-o", "--option")
OLD_FLAG = f"{FLAGS[1]}s"  # scripts written for earlier releases use it with a JSON object
OPTIONS = AliasChoices("o", "option")
ABOUT = (
    "option of the modality as NAME=VALUE, such as -o mpp=0.5; repeat it for further ones; "
    "`lejepa-med options MODALITY` lists them"
)


def _short(name: str) -> Any:
    section, key = SHORT[name].split(".")
    return Field(default=None, description=SECTIONS[section].model_fields[key].description)


class CommonSettings(Columns, PretrainConfig):
    """The settings of pretrain, with a short flag for each common one."""

    catalog: Path | None = _short("catalog")
    group_column: str | None = _short("group_column")
    label_column: str | None = _short("label_column")
    split: str | None = _short("split")
    exclude: Path | None = _short("exclude")
    allow_leak: bool = Field(default=False, description=DataConfig.model_fields["allow_leak"].description)
    options: dict[str, str] = Field(default={}, validation_alias=OPTIONS, description=ABOUT)
    init: Path | None = _short("init")
    backbone: str | None = _short("backbone")
    minutes: float | None = _short("minutes")
    epochs: int | None = _short("epochs")
    batch_size: int | None = _short("batch_size")
    seed: int | None = _short("seed")

    def settings(self) -> PretrainConfig:
        """Return the given settings as a tree.

        Raises:
            ConfigError: a setting was given under both names, or the modality has no such option.
        """
        own = set(type(self).model_fields) - set(PretrainConfig.model_fields)
        tree = self.model_dump(exclude_unset=True, exclude=own)
        for name in SHORT.keys() & self.model_fields_set:
            section, key = SHORT[name].split(".")
            if key in tree.get(section, {}):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} and --{section}.{key} are one setting.", remedy=f"Give --{flag} alone.")
            tree[section] = {**tree.get(section, {}), key: getattr(self, name)}
        if self.options:
            data = tree.get("data", {})
            options = {**data.get("options", {}), **option_values(self.modality, self.options)}
            tree["data"] = {**data, "options": options}
        return PretrainConfig(**{"modality": self.modality, **tree})


METHOD = "--objective.method"


def with_method(root: type[BaseSettings], arguments: Sequence[str]) -> type[BaseSettings]:
    """Return the command line with the settings of the method in `arguments` as its --objective flags.

    Raises:
        ConfigError: no such method, or an --objective flag that it does not have.
    """
    name = arguments[0] if arguments else ""
    if name not in root.model_fields:
        return root
    field = copy(root.model_fields[name])
    command = next(kind for kind in get_args(field.annotation) if kind is not NoneType)
    if not issubclass(command, CommonSettings):
        return root
    from lejepa_med.methods.registry import read, refuse, targets

    method = ObjectiveConfig().method
    keys = set()
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, is_joined, value = flag.partition("=")
        if flag == METHOD:
            method = value if is_joined else following
        section, _, key = flag.lstrip("-").removeprefix("no-").partition(".")
        if section == "objective":
            keys.add(key.replace("-", "_"))
    settings = type(read(ObjectiveConfig(method=method))[0])
    # as a value that is nobody's default, so that `read` says which method has it, or what was meant
    refuse(read(ObjectiveConfig(method=method, **dict.fromkeys(keys - settings.model_fields.keys(), "?")))[1])
    others = ", ".join(other for other in targets() if other != method)
    about = f"{settings.__doc__} Other methods, whose settings `{METHOD} NAME --help` lists: {others}."
    listed: Any = create_model(settings.__name__, __base__=settings, __doc__=about)
    is_hidden = CLI_SUPPRESS in command.model_fields["objective"].metadata
    kind: Any = Annotated[listed, CLI_SUPPRESS] if is_hidden else listed
    changed: Any = create_model(command.__name__, __base__=command, __doc__=command.__doc__, objective=(kind, listed()))
    field.annotation = changed | None
    fields: dict[str, Any] = {name: (field.annotation, field)}
    return create_model(root.__name__, __base__=root, __doc__=root.__doc__, **fields)


def join_options(arguments: list[str]) -> list[str]:
    """Join all modality options into one JSON argument, because the parser would split values at commas.

    Raises:
        ConfigError: an option has no value, or is given twice.
    """
    others: list[str] = []
    given: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            others += [argument, *rest]
        elif argument in (*FLAGS, OLD_FLAG) or argument.startswith("--option="):
            text = argument.partition("=")[2] if argument.startswith("--option=") else next(rest, "")
            for name, value in _pairs(argument, text):
                if name in given:
                    raise ConfigError(f"The option {name} is given twice.", remedy="Give it once.")
                given[name] = value
        else:
            others.append(argument)
    return [*others[:1], "--option", json.dumps(given), *others[1:]] if given else others


def _pairs(flag: str, text: str) -> list[tuple[str, str]]:
    """Return (name, text) of one NAME=VALUE option, or of each entry of a JSON object."""
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else None
    except ValueError:
        found = None
    if isinstance(found, dict):
        return [(name, one if isinstance(one, str) else json.dumps(one)) for name, one in found.items()]
    name, is_pair, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not (name and is_pair):
        raise ConfigError(f"{flag} is followed by {text!r}.", remedy="Give -o NAME=VALUE, as -o mpp=0.5.")
    return [(name, value)]


def option_values(modality: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Convert option texts to values: numbers, words, 'none', JSON, and lists with commas.

    NAME.ENTRY sets one entry of a table option. If `modality` is empty, because a manifest or encoder supplies it
    later, texts are read as JSON or words.

    Raises:
        ConfigError: the modality has no such option.
    """
    from data_adapters.registry import load_class

    kind = getattr(load_class(modality), "Options", None) if modality else None
    fields = None if kind is None else kind.model_fields
    values: dict[str, Any] = {}
    for name, text in given.items():
        name, _, entry = name.partition(".")
        if fields is not None and name not in fields:
            close = get_close_matches(name, fields, n=1)
            raise ConfigError(
                f"The modality {modality} has no option '{name}'.",
                remedy=(f"Did you mean {close[0]}? " if close else "")
                + f"`lejepa-med options {modality}` lists its options.",
            )
        if entry:
            values[name] = {**values.get(name, {}), entry: text}
        else:
            values[name] = _value(None if fields is None else fields[name], text)
    return values


def _value(field: FieldInfo | None, text: str) -> Any:
    """Return the first interpretation of the text that the option accepts, or the text, which the modality refuses."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None if text.casefold() == "none" else text
    readings = [text, parsed, [part.strip() for part in text.split(",")]]
    if field is None:
        return parsed
    if parsed is None or isinstance(parsed, list | dict):
        readings.insert(0, parsed)
    kind: TypeAdapter[Any] = TypeAdapter(field.annotation)  # type: ignore[arg-type]
    for reading in readings:
        try:
            kind.validate_python(reading)
        except ValidationError:
            continue
        return reading
    return text


def option_rows(modality: str) -> Iterable[tuple[str, str, str, str]]:
    """Yield (name, values, default, meaning) of each option, except those that follow from other settings."""
    from data_adapters.contract import AdapterOptions
    from data_adapters.registry import load_class

    kind: type[AdapterOptions] = getattr(load_class(modality), "Options", AdapterOptions)
    usual = kind()
    for name, field in kind.model_fields.items():
        if name in SETTLED or name in getattr(kind, "INSTEAD", {}):
            continue
        kind_text = "path | none" if name == "augment" else _kind_text(field.annotation)
        yield name, kind_text, _default_text(getattr(usual, name)), field.description or ""


def _kind_text(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (tuple, list):
        return "list of " + _kind_text(parts[0])
    if origin is dict:
        return f"table of {_kind_text(parts[1])}: NAME.ENTRY=VALUE"
    if parts and hasattr(kind, "__metadata__"):
        return _kind_text(parts[0])
    if parts:
        return " | ".join(_kind_text(part) for part in parts)
    if kind is NoneType:
        return "none"
    return {bool: "true | false", int: "whole number", float: "number", str: "text", Path: "path"}.get(kind, str(kind))


def _default_text(value: Any) -> str:
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def make_console(*, stderr: bool = True) -> Any:
    """Return a rich console; the import waits for the command."""
    from rich.console import Console

    return Console(stderr=stderr)
