"""Imports run one way: between the packages, and between their folders without a circle; lazy imports count, too."""

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_adapters", "lejepa_med", "app")


def folders_imported() -> dict[str, set[str]]:
    """Folder -> folders of ours that its modules import."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
    }
    found: dict[str, set[str]] = defaultdict(set)
    for module, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[module] |= (inner & files.keys()) or ({node.module} & files.keys())
            elif isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names} & files.keys()
    folders = {module: ".".join(file.relative_to(ROOT).parent.parts) for module, file in files.items()}
    graph: dict[str, set[str]] = defaultdict(set)
    for module, others in found.items():
        graph[folders[module]] |= {folders[other] for other in others} - {folders[module]}
    return graph


def test_no_folder_imports_one_that_imports_it() -> None:
    graph = folders_imported()
    assert len(graph) > 25
    TopologicalSorter(graph).prepare()  # CycleError names the folders of a circle


def test_no_package_names_one_above_it() -> None:
    """Also in strings: app -> lejepa_med -> data_adapters."""
    for package, above in (("lejepa_med", "app"), ("data_adapters", "app|lejepa_med")):
        for file in (ROOT / package).rglob("*.py"):
            found = re.search(rf"""^\s*(from|import) ({above})\b|["']app[.:]\w""", file.read_text("utf-8"), re.M)
            assert found is None, f"{file}: {found[0]}"


def test_tests_and_benchmarks_import_what_they_share_from_harness() -> None:
    """Only tests/benchmarks, which tests the benchmarks' own code, imports a benchmark; no benchmark imports a test."""
    for folder, other in (("tests", "benchmarks"), ("benchmarks", "tests"), ("harness", "tests|benchmarks")):
        for file in (ROOT / folder).rglob("*.py"):
            if file.parent == ROOT / "tests" / "benchmarks":
                continue
            found = re.search(rf"^\s*(from|import) ({other})\b", file.read_text("utf-8"), re.M)
            assert found is None, f"{file}: {found[0]}"
