"""README's commands from embedding on, its curl lines and its Python, as they are printed, on a small archive."""

import csv
from pathlib import Path

import pytest

from tests.pages.printed import ROOT, blocks, run

README = ROOT / "README.md"
BEFORE = """
python -m examples.demo.archives mri --out scans --n 12
cp scans/labels.csv . && cp scans/sub-001/anat/sub-001_T1w.nii.gz scan.nii.gz && cp scan.nii.gz new.nii.gz
lejepa-med scan scans --modality mri --catalog scans/labels.csv --out scan
lejepa-med pretrain scans --modality mri --catalog scans/labels.csv --out runs/heads --epochs 1 \
  --batch-size 8 --views.n-local 0 --views.global-size 32 --backbone resnet10t --monitor.sample 16
"""
LABELS = """
import csv, json
own = {row["path"]: row["label"] for row in csv.DictReader(open("labels.csv"))}
labels = [{"id": row["id"], "label": own[row["path"]]} for row in csv.DictReader(open("named.csv"))]
json.dump({"archive": "heads-archive", "labels": labels[:20]}, open("labels.json", "w"))
"""
SERVED = (
    "lejepa-med serve runs --port 8000 > service.log 2>&1 &\nuntil curl -sf localhost:8000/readyz; do sleep 1; done\n"
)
BATCHES = "import torch\nbatches = [(torch.rand(2, 1, 64, 64), torch.tensor([0, 4]))]\n"


@pytest.mark.pages
def test_readme_runs_as_printed(tmp_path: Path) -> None:
    _, *shell = [text for _, text in blocks(README, "sh")]  # the first one is the example in the introduction
    (embed,) = [text for text in shell if "lejepa-med embed runs/heads" in text]
    (ask,) = [text for text in shell if "curl" in text and "docker" not in text]
    (tune,) = [text for _, text in blocks(README, "python")]
    assert "lejepa-med serve runs  " in "".join(shell)
    script = BEFORE + embed.replace("/data/scans", "scans") + f"python - <<'PYTHON'\n{LABELS}PYTHON\n"
    script += SERVED + ask.replace("curl ", "curl --fail-with-body ") + f"python - <<'PYTHON'\n{BATCHES}{tune}PYTHON\n"
    shown = run(script, tmp_path)
    with (tmp_path / "named.csv").open(newline="", encoding="utf-8") as stream:
        named = list(csv.DictReader(stream))
    assert len(named) == 24 and all((tmp_path / "scans" / row["path"]).is_file() for row in named)
    answers = shown.partition("archive=heads-archive")[0]
    assert answers.count('"vector"') == 1 and '"succeeded"' in shown and shown.count('"probabilities"') >= 2
    assert '"hits"' in shown and '"distance"' in shown
