"""Lists come in pages that link to each other."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.app.helpers import files, png, wait


@pytest.fixture(scope="module")
def probe(client: TestClient) -> str:
    """A probe with two applications, beside another probe and two uploads."""
    ids = [item["id"] for item in client.get("/v1/archives/table/ids").json()["items"]]
    body = {"archive": "table", "labels": [{"id": i, "label": "ab"[n % 2]} for n, i in enumerate(ids)], "folds": 2}
    jobs = [client.post("/v1/probes", json=body).json()["id"] for _ in range(2)]
    made = [wait(client, job)["id"] for job in jobs]
    address = f"/v1/probes/{made[0]}/applications"
    jobs = [client.post(address, json={"archive": "table"}).json()["id"] for _ in range(2)]
    for number in range(2):
        sent = {"name": f"paged {number}", "modality": "images"}
        jobs.append(client.post("/v1/uploads", files=files(png(number)), data=sent).json()["id"])
    assert all(wait(client, job)["state"] == "succeeded" for job in jobs)
    return made[0]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/probes", "probes"),
        ("/v1/probes/PROBE/applications", "applications"),
        ("/v1/uploads", "uploads"),
        ("/v1/jobs", "jobs"),
        ("/v1/jobs?state=succeeded&kind=import-upload", "jobs"),
    ],
)
def test_pages_lead_through_the_whole_list(client: TestClient, probe: str, path: str, name: str) -> None:
    path = path.replace("PROBE", probe)
    mark = "&" if "?" in path else "?"
    whole = client.get(f"{path}{mark}limit=1000").json()
    assert len(whole[name]) >= 2 and whole.get("next") is None
    seen: list[Any] = []
    link: str | None = f"{path}{mark}limit=1"
    while link:
        page = client.get(link).json()
        assert len(page[name]) == 1
        seen += page[name]
        link = page.get("next")
    assert seen == whole[name]
    assert client.get(f"{path}{mark}offset=100000").json()[name] == []
    for wrong in ("limit=0", "limit=1001", "offset=-1", f"offset={2**31}"):
        assert client.get(f"{path}{mark}{wrong}").status_code == 422
