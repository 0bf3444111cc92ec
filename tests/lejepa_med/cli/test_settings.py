"""Short names of settings and options of a modality, as the command line takes them."""

from pathlib import Path
from typing import Any

import pytest

import data_adapters
from lejepa_med.cli import main
from lejepa_med.cli.settings import CommonSettings, join_options, option_rows, option_values
from lejepa_med.errors import ConfigError

READ = [
    ("galaxy", {"bands": "g,r,z", "scales": "1,0.5,2", "field": "1"}, {"bands": "g,r,z", "scales": (1, 0.5, 2)}),
    ("galaxy", {"kind": "flux", "background": "none"}, {"kind": "flux", "background": "none"}),
    ("mri", {"sequences": "T1w,T2w", "sequence_patterns.T1w": "mprage|t1,[ab]"}, {"sequences": ("T1w", "T2w")}),
    ("mri", {"volume": "0", "flip": "false", "modalities": "CT"}, {"volume": 0, "flip": False, "modalities": ("CT",)}),
    ("histology", {"mpp": "none", "mpp_range": "[0.4, 1]"}, {"mpp": None}),
    ("histology", {"mpp": "0.25", "group_by": "folder:2"}, {"mpp": 0.25, "group_by": "folder:2"}),
    ("images", {"mean": "0.5", "std": "0.25", "hflip": "0"}, {"mean": (0.5,), "std": (0.25,), "hflip": 0}),
]


@pytest.mark.parametrize(("modality", "given", "expected"), READ)
def test_options_are_read_as_the_modality_has_them(
    modality: str, given: dict[str, str], expected: dict[str, Any]
) -> None:
    values = option_values(modality, given)
    if "mpp_range" in given:
        assert values["mpp_range"] == [0.4, 1]
        del values["mpp_range"]  # it needs an mpp
    options = data_adapters.create(modality, **values).options  # type: ignore[attr-defined]
    assert {name: getattr(options, name) for name in expected} == expected
    if "sequence_patterns.T1w" in given:
        assert options.sequence_patterns == {"T1w": "mprage|t1,[ab]"}


@pytest.mark.parametrize("modality", ["mri", "mri3d", "histology", "galaxy", "images"])
def test_every_listed_default_can_be_given(modality: str) -> None:
    """What the table of options shows as a default is what the option is without being given."""
    given = {name: text for name, _, text, _ in option_rows(modality) if text != "none"}
    assert len(given) > 5
    values = option_values(modality, given)
    assert data_adapters.create(modality, **values).describe() == data_adapters.create(modality).describe()


def test_options_are_gathered_and_slips_are_named() -> None:
    arguments = ["scan", "a", "-o", "bands=g,r", "--option=group-by=file", "--out", "x", "-o", 'note={"a": 1}', "b"]
    assert join_options(arguments) == [
        *("scan", "--option", '{"bands": "g,r", "group_by": "file", "note": "{\\"a\\": 1}"}'),
        *("a", "--out", "x", "b"),
    ]
    assert join_options(["scan", "--", "-o", "x"]) == ["scan", "--", "-o", "x"]
    as_json = ["scan", "a", "--options", '{"bands": "g,r", "scales": [1, 2], "field": null}']
    assert join_options(as_json)[2] == '{"bands": "g,r", "scales": "[1, 2]", "field": "null"}'
    assert option_values("galaxy", {"scales": "[1, 2]", "field": "null"}) == {"scales": [1, 2], "field": None}
    for wrong, told in ((["-o"], "NAME=VALUE"), (["-o", "mpp"], "'mpp'"), (["-o", "a=1", "-o", "a=2"], "given twice")):
        with pytest.raises(ConfigError, match=told):
            join_options(["scan", *wrong])
    with pytest.raises(ConfigError, match=r"no option 'band'.*Did you mean bands\?.*lejepa-med options galaxy"):
        option_values("galaxy", {"band": "g"})


def test_a_setting_has_one_place_and_is_given_once(tmp_path: Path) -> None:
    base = {"archive": tmp_path, "out": tmp_path, "modality": "images"}
    found = CommonSettings(**base, minutes=3, o={"hflip": "0"}, data={"workers": 0}).settings()
    assert found.train.minutes == 3 and float(found.data.options["hflip"]) == 0
    assert found.train.model_fields_set == {"minutes"} and found.data.workers == 0
    with pytest.raises(ConfigError, match=r"--batch-size and --train\.batch_size are one setting"):
        CommonSettings(**base, batch_size=8, train={"batch_size": 8}).settings()


def test_the_options_command_lists_names_values_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    main(["options", "histology"])
    shown = capsys.readouterr().out
    assert "mpp_range" in shown and "he | ihc | any" in " ".join(shown.split()) and "global_size" not in shown
    with pytest.raises(SystemExit):
        main(["options", "histolgy"])
    assert "histology" in capsys.readouterr().err
