"""What errors and documents tell a user to do: every option and command they name exists, and no remedy is empty."""

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lejepa_med.cli import Cli, main
from lejepa_med.methods.registry import targets

ROOT = Path(__file__).parents[2]
SOURCES = sorted(file for package in ("lejepa_med", "data_adapters", "app") for file in (ROOT / package).rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ERRORS = {
    "UserError",
    "ConfigError",
    "EncoderError",
    "TrainingError",
    "MissingExtraError",
    "OtherFormatError",
    "BadFileError",
    "Rejected",
}
# Options of other programs that errors and documents name: pip, torchrun, vips, docker.
FOREIGN = set("--force-reinstall --nproc-per-node --nnodes --pyramid --tile --shm-size --build-arg".split())
FOREIGN.add("--objective.hidden")  # of the method that docs/method.md shows how to write
FOREIGN |= {"--clean", "--strict"}  # of the generator that builds the site
FOREIGN |= {"--starts", "--sets", "--seeds"}  # of python -m benchmarks.methods
WORDS = {"release", "brings"}  # that follow "lejepa-med" in sentences
KEY = ("key", "key create", "key list", "key revoke")


@cache
def options(command: str) -> frozenset[str]:
    """Options in the help of a command."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9]", shown.getvalue()))


@cache
def every_option() -> frozenset[str]:
    """Options of all commands and methods, and the names of their sections, which some texts give alone."""
    whole = frozenset().union(*(options(command) for command in (*Cli.model_fields, *KEY)), options_of_methods())
    return whole | {option.partition(".")[0] for option in whole}


@cache
def options_of_methods() -> frozenset[str]:
    """Options of pretrain that only some methods have."""
    return frozenset().union(*(options(f"pretrain --objective.method {method}") for method in targets()))


def literal(node: ast.AST) -> str:
    """The text of a string in the source, with NUL for what is filled in; of joined and conditional ones, all parts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    if isinstance(node, ast.IfExp):
        return f"{literal(node.body)} {literal(node.orelse)}"
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return "\0"


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of all strings, docstrings included."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in parts:
            yield node.lineno, literal(node)


def unknown(text: str) -> list[str]:
    """Commands and options in a text that do not exist."""
    found = []
    for said in re.finditer(r"lejepa-med ((?:key )?[a-z]+)(?=[\s:;,.`'\")]|$)([^`\n;]*)", text):
        command = said[1] if said[1] in KEY else said[1].split()[0]
        if command in WORDS:
            continue
        if command not in (*Cli.model_fields, *KEY):
            found.append(f"lejepa-med {said[1]}")
            continue
        line = re.split(r" \| | && |  #|[.,] | \(", said[2])[0]
        found += [o for o in named(line) if o not in options(command) | options_of_methods() and o not in FOREIGN]
    return found


def named(text: str) -> list[str]:
    """Options in a text, but for those whose name is filled in."""
    return re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9](?![\w.-]*\0)", text)


def test_what_does_not_exist_is_found() -> None:
    assert unknown("Repeat: lejepa-med scann ARCHIVE") == ["lejepa-med scann"]
    assert unknown("Run lejepa-med scan ARCHIVE --workrs 0, or set --epochs 3.") == ["--workrs"]
    assert unknown("lejepa-med key create --scope read") == ["--scope"] and not unknown("lejepa-med key list")
    assert named("Set --train.epoch or --objective.\0.") == ["--train.epoch"] and "--train.epoch" not in every_option()


def test_errors_have_a_remedy() -> None:
    without = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ERRORS):
                continue
            said = [literal(keyword.value).strip() for keyword in node.keywords if keyword.arg == "remedy"]
            weak = [text for text in said if not text or re.match(r"(None|Nothing)\b(?! was replaced)", text)]
            if not said or weak:
                without.append(f"{file.relative_to(ROOT)}:{node.lineno} {weak}")
    assert not without


@pytest.mark.parametrize("package", ["lejepa_med", "data_adapters", "app"])
def test_errors_name_commands_and_options_that_exist(package: str) -> None:
    wrong = []
    for file in (file for file in SOURCES if file.relative_to(ROOT).parts[0] == package):
        for line, text in texts(ast.parse(file.read_text(encoding="utf-8"))):
            missing = unknown(text) + [o for o in named(text) if o not in every_option() and o not in FOREIGN]
            wrong += [f"{file.relative_to(ROOT)}:{line} {name}" for name in missing]
    assert not wrong


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_documents_name_commands_and_options_that_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    dotted = [o for o in named(text) if "." in o and o not in every_option()]
    inline = [o for code in re.findall(r"`(--[^`]*)`", text) for o in named(code) if o not in every_option()]
    assert not [name for name in unknown(text) + dotted + inline if name not in FOREIGN]
