"""The command line: `lejepa-med COMMAND --help` lists its settings. Heavy imports wait for the command."""

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from typing import Any

from pydantic import ValidationError, create_model
from pydantic_settings import BaseSettings, CliApp, CliSubCommand, SettingsConfigDict, SettingsError

from data_adapters.quiet import quiet_readers
from lejepa_med.cli.archive import (
    AugmentCommand,
    DoctorCommand,
    InspectCommand,
    NamesCommand,
    OptionsCommand,
    ScanCommand,
    SplitCommand,
)
from lejepa_med.cli.embeddings import EmbedCommand, PredictCommand, ProbeCommand, SearchCommand
from lejepa_med.cli.export import ExportCommand, FetchCommand, LatencyCommand
from lejepa_med.cli.quality import CheckCommand, OutliersCommand, RetrievalCommand
from lejepa_med.cli.runs import (
    CompareCommand,
    DiffCommand,
    EvaluateCommand,
    PrecisionCommand,
    PretrainCommand,
    SelectCommand,
    StabilityCommand,
    VectorsCommand,
)
from lejepa_med.cli.settings import join_options, with_method
from lejepa_med.config import Section, issues
from lejepa_med.ending import ended_by_signals
from lejepa_med.errors import explained

COMMAND_GROUP = "lejepa_med.commands"


class Commands(BaseSettings):
    """In-domain self-supervised pretraining (LeJEPA) on your own archive, embeddings and small-label probes."""

    model_config = SettingsConfigDict(
        cli_prog_name="lejepa-med",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_use_class_docs_for_groups=True,
        cli_exit_on_error=False,
        env_prefix="LEJEPA_CLI_UNUSED_",  # settings come from flags and files only
    )

    def cli_cmd(self) -> None:
        """Run the chosen command."""
        CliApp.run_subcommand(self)


def registered() -> dict[str, type[Section]]:
    """Return the commands that installed packages add, the service's among them, by name.

    An entry point in the group `lejepa_med.commands` names a dictionary of settings classes with a method `cli_cmd`.
    """
    # not entry_points(): beside a checkout, what an earlier installation left there would hide the present one
    points = {point for found in distributions() for point in found.entry_points.select(group=COMMAND_GROUP)}
    return {name: kind for point in sorted(points) for name, kind in point.load().items()}


def command_line(commands: Mapping[str, type[Section]]) -> type[Commands]:
    """Return the class that parses a command line with these commands, in their order."""
    subcommand: Any = CliSubCommand  # a generic alias, which type checkers take for type annotations alone
    fields: dict[str, Any] = {name: (subcommand[kind], ...) for name, kind in commands.items()}
    return create_model("Cli", __base__=Commands, __doc__=Commands.__doc__, **fields)


Cli = command_line(
    {
        "scan": ScanCommand,
        "split": SplitCommand,
        "inspect": InspectCommand,
        "augment": AugmentCommand,
        "pretrain": PretrainCommand,
        "embed": EmbedCommand,
        "precision": PrecisionCommand,
        "vectors": VectorsCommand,
        "probe": ProbeCommand,
        "predict": PredictCommand,
        "search": SearchCommand,
        "check": CheckCommand,
        "outliers": OutliersCommand,
        "retrieval": RetrievalCommand,
        "export": ExportCommand,
        "fetch": FetchCommand,
        "names": NamesCommand,
        "select": SelectCommand,
        "diff": DiffCommand,
        "evaluate": EvaluateCommand,
        "compare": CompareCommand,
        "latency": LatencyCommand,
        "stability": StabilityCommand,
        **registered(),
        "options": OptionsCommand,
        "doctor": DoctorCommand,
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lejepa-med`. What a user can put right is printed in one line; exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    quiet_readers()
    hook, threading.excepthook = threading.excepthook, _in_thread
    try:
        with ended_by_signals():
            try:
                CliApp.run(with_method(Cli, arguments), cli_args=_joined(join_options(arguments)) or ["--help"])
            finally:
                _flush()
    except ValidationError as error:
        _fail(f"{issues(error)}. See {_help(arguments)}.")
    except SettingsError as error:
        _fail(f"{error}. See {_help(arguments)}.")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        sys.exit(141)
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        _fail(str(known))
    finally:
        threading.excepthook = hook


def _flush() -> None:
    """Flush standard output here, where an error of the disk behind it can still be explained."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python flushes what is left once more when it ends, and would turn our exit code into 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _in_thread(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback for a fault of the machine in a thread, such as TensorBoard's: the command meets it, too."""
    if failed.exc_value is None or explained(failed.exc_value) is None:
        threading.__excepthook__(failed)


def _help(arguments: list[str]) -> str:
    """The command that explains what was asked for: that of the command where there is such a one."""
    known = [name for name in arguments[:1] if name in Cli.model_fields]
    return " ".join(["lejepa-med", *known, "--help"])


def _joined(arguments: list[str]) -> list[str]:
    """`--fractions train=.8 test=.2` as the one value that the parser takes, `train=.8,test=.2`.

    In a search a name of a file, or a condition, may have commas and brackets, which the parser takes for lists.
    """
    if arguments[:1] == ["search"]:
        flags = ("--where", "--leave-out-own-group", "--no-leave-out-own-group")
        alone = [not before.startswith("-") or before in flags for before in ["", *arguments[:-1]]]
        return [
            f'"{text}"' if whole and not text.startswith("-") and set(text) & set(",[]{}") else text
            for text, whole in zip(arguments, alone, strict=True)
        ]
    if "--fractions" not in arguments:
        return arguments
    first = arguments.index("--fractions") + 1
    last = first
    while last < len(arguments) and "=" in arguments[last] and not arguments[last].startswith("-"):
        last += 1
    return [*arguments[:first], ",".join(arguments[first:last]), *arguments[last:]] if last > first else arguments


def _fail(message: str) -> None:
    print(f"lejepa-med: {message}", file=sys.stderr)
    sys.exit(2)
