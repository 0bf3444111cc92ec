"""A row for each tile of a slide, by the command line and by HTTP: the same pixels, ids, places and predictions."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient

from app.core.settings import Settings
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.models.embed import EmbeddingTable, read_shards
from lejepa_med.models.folder import load_encoder
from lejepa_med.probes.probe import fit_probe
from tests.app.helpers import wait
from tests.data.histology import write_slide

PLACES = ["whole", "x", "y", "side", "level0_mpp", "tile_mpp"]


def test_tiles_of_slides_are_rows(
    client: TestClient, runs: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings.archives_dir is not None
    archive = settings.archives_dir / "slides"
    archive.mkdir(parents=True)
    for number in range(3):
        write_slide(archive / f"Doe_{number}.tif", width=420 + 40 * number, height=400, mpp=0.25, seed=number)
    encoder = load_encoder(runs / "histology")
    manifest = scan_archive(encoder.adapter, archive).manifest
    divided = manifest.in_parts(encoder.adapter)
    of_first = [row for row in range(len(divided)) if divided.value("path", row) == manifest.value("path", 0)]
    tiles = torch.cat([encoder.adapter.prepare(divided.record(row)) for row in of_first])
    # The one preprocessing: each tile that stands for the slide is one of its rows, bit for bit.
    for own in encoder.adapter.prepare(manifest.record(0)):
        assert any(torch.equal(own, tile) for tile in tiles)

    main(["embed", str(runs / "histology"), str(archive), "--per-tile", "--out", str(tmp_path / "t"), "--workers", "0"])
    capsys.readouterr()
    table = EmbeddingTable.open(tmp_path / "t")
    rows = read_shards(tmp_path / "t")
    assert set(PLACES) <= set(rows.column_names)
    first = rows.slice(0, 1).to_pylist()[0]
    assert (first["side"], first["level0_mpp"], first["tile_mpp"]) == (64.0, 0.25, 0.5)
    assert set(rows.column("whole").to_pylist()) == set(manifest.column("id"))
    assert len(set(table.ids)) == len(table.ids) > 3 * 4 and len(set(table.groups)) == 3
    np.testing.assert_allclose(encoder.embed([tiles[:1]])[0], table.vectors[0], atol=1e-5)

    body = {"name": "tiles", "folder": "slides", "encoder": "histology", "pool": "none"}
    job = wait(client, client.post("/v1/archives", json=body).json()["id"], seconds=120)
    assert job["state"] == "succeeded", job
    (settings.data / "download.parquet").write_bytes(client.get("/v1/archives/tiles/table").content)
    served = pq.read_table(settings.data / "download.parquet")
    assert served.column("id").to_pylist() == table.ids
    assert all(served.column(name).to_pylist() == rows.column(name).to_pylist() for name in PLACES)
    vectors = np.stack(served.column("vector").to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(vectors, table.vectors, atol=1e-5)
    assert "Doe" not in json.dumps(client.get("/v1/archives/tiles/columns").json())

    # A probe answers tile by tile, for single ids and for the whole table.
    marks = ["left" if x < 200 else "right" for x in rows.column("x").to_pylist()]
    probe = fit_probe(table.vectors, marks, table.groups, ids=table.ids, encoder=table.encoder, folds=2)
    probe.save(runs / "sides")
    place = next(one["id"] for one in client.get("/v1/probes").json()["probes"] if one["name"] == "sides")
    answer = client.post(f"/v1/probes/{place}/predictions", json={"archive": "tiles", "ids": table.ids[:2]}).json()
    assert [one["id"] for one in answer["items"]] == table.ids[:2] and answer["items"][0]["label"] in {"left", "right"}
    application = client.post(f"/v1/probes/{place}/applications", json={"archive": "tiles"}).json()
    assert wait(client, application["id"], seconds=60)["state"] == "succeeded"

    refused = client.post("/v1/archives", json={**body, "name": "other", "encoder": "images"})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:lejepa-med:problem:no-parts")
    with pytest.raises(SystemExit):
        main(["embed", str(runs / "mri"), str(tmp_path / "none"), "--per-tile", "--out", str(tmp_path / "u")])
