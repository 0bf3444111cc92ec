"""lejepa_med is read, and runs, without what is in research."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_nothing_outside_of_research_imports_it() -> None:
    found = []
    for package in ("lejepa_med", "app", "data_adapters"):
        for file in (ROOT / package).rglob("*.py"):
            if "research" in file.relative_to(ROOT).parts:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found += [f"{file.name}: {name}" for name in names if name.startswith("lejepa_med.research")]
    assert not found


def test_a_run_of_lejepa_loads_only_the_table_of_names() -> None:
    code = "import sys, lejepa_med.training.loop; from lejepa_med.methods.registry import targets; targets(); "
    code += "assert [n for n in sys.modules if n.startswith('lejepa_med.research')] == ['lejepa_med.research']"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
