"""The service's commands: `lejepa-med key` before any service runs, and each command without the extra 'serve'."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.api.keys import FORM, KeyRing
from app.core.settings import Settings
from app.store import open_store
from lejepa_med.cli import main


def test_create_list_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str], database_url: str | None) -> None:
    monkeypatch = pytest.MonkeyPatch()
    if database_url is not None:
        monkeypatch.setenv("LEJEPA_DATABASE_URL", database_url)
    place = ["--data-dir", str(tmp_path / "data")]
    try:
        main(["key", "create", "gateway", "--scopes", "embed,probe", "--expires-days", "30", *place])
        printed = capsys.readouterr()
        match = FORM.fullmatch(printed.out.strip())
        assert match is not None, "standard output is the key and nothing else"
        assert match[2] not in printed.err
        main(["key", "list", *place])
        listed = capsys.readouterr().out
        assert match[1] in listed and "embed,probe" in listed and match[2] not in listed
        store = open_store(Settings(data_dir=tmp_path / "data"))
        ring = KeyRing(store)
        ring.refresh()
        assert ring.check(printed.out.strip()).name == "gateway"
        main(["key", "revoke", match[1], *place])
        assert match[1] in capsys.readouterr().out
        assert store.keys()[0].revoked is not None
        assert [(row.action, row.target) for row in store.audit(limit=9)] == [
            ("lejepa-med key revoke", match[1]),
            ("lejepa-med key create", match[1]),
        ]
        stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
        assert match[2].encode() not in stored
        store.close()
    finally:
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "x", "--scopes", "root"], "embed,probe,admin"),
        (["create", "", "--scopes", "embed"], "1 to 120"),
        (["revoke", "0000"], "key list"),
        ([], "lejepa-med key list"),
    ],
)
def test_mistakes_name_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    place = ["--data-dir", str(tmp_path / "data")] if arguments else []
    with pytest.raises(SystemExit) as ended:
        main(["key", *arguments, *place])
    assert ended.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve runs", "work runs", "backup b.tar --data-dir d", "key list", "scan --help"])
def test_without_the_extra_each_command_says_what_to_install(command: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['fastapi'] = None\nfrom lejepa_med.cli import main; main({command.split()!r})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    if command == "scan --help":
        assert ended.returncode == 0, ended.stderr
    else:
        assert ended.returncode == 2 and "pip install 'lejepa-med[serve]'" in ended.stderr, ended.stderr
        assert "'fastapi'" in ended.stderr
