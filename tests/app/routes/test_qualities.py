"""Quality reports by REST: a job each, the same findings as the commands, refusals, and what DELETE takes away."""

import shutil
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from tests.app.helpers import picture, wait

ITEMS = 40


@pytest.fixture(scope="module")
def ward(client: TestClient, settings: Settings) -> Iterator[str]:
    """40 pictures of 20 patients; bright ones come from scanner s1 alone, and item 7 is a smaller copy of item 3."""
    assert settings.archives_dir is not None
    folder = settings.archives_dir / "quality"
    folder.mkdir(parents=True)
    rows = ["path,label,group,scanner"]
    for number in range(ITEMS):
        bright = number % 2 == 1
        image = cv2.GaussianBlur(picture(number, bright=bright), (0, 0), 3)
        cv2.circle(image, (8 + number % 5 * 6, 8 + number % 7 * 4), 6, (10, 10, 10), -1)
        cv2.circle(image, (8 + number % 7 * 4, 8 + number % 3 * 9), 4, (250, 250, 250), -1)
        if number == 7:
            image = cv2.resize(cv2.imread(str(folder / "3.png")), (34, 34), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number}.png"), image)
        scanner = "s1" if bright or number % 12 == 0 else "s2"
        rows.append(f"{number}.png,{'bright' if bright else 'dark'},p{number % 20},{scanner}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    wanted = {"name": "quality", "folder": "quality", "encoder": "images", "catalog": "labels.csv"}
    job = wait(client, client.post("/v1/archives", json=wanted).json()["id"])
    assert job["state"] == "succeeded", job
    yield "/v1/archives/quality"
    assert client.delete("/v1/archives/quality").status_code == 204
    shutil.rmtree(folder)


def ended(client: TestClient, address: str, body: dict[str, object]) -> dict[str, object]:
    answer = client.post(address, json=body)
    assert answer.status_code == 202, answer.text
    job = wait(client, answer.json()["id"])
    assert job["state"] == "succeeded" and job["result"] == f"/v1/qualities/{job['id']}", job
    found: dict[str, object] = client.get(job["result"]).json()
    return found


def test_a_check_names_the_scanner_and_probes_warn_of_it(client: TestClient, ward: str) -> None:
    found = ended(client, f"{ward}/checks", {"leave_out": "scanner"})
    report = found["report"]
    assert found["kind"] == "check" and report["confounded"] == ["scanner"], found["summary"]
    assert "confounded with 'scanner'" in found["summary"][0] and "s1" not in str(found)  # texts are pseudonyms
    assert report["leave_out"]["unseen"]["linear"] is None
    items = client.get(f"{ward}/ids").json()["items"]
    labels = [{"id": one["id"], "label": "ab"[place % 2]} for place, one in enumerate(items)]
    column = client.get(f"{ward}/columns/label").content
    codes = np.frombuffer(column, np.uint8)
    for one, value in zip(labels, codes.tolist(), strict=True):
        one["label"] = "ab"[value]
    made = client.post("/v1/probes", json={"archive": "quality", "labels": labels})
    probe = wait(client, made.json()["id"])["id"]
    warnings = client.get(f"/v1/probes/{probe}").json()["metrics"]["warnings"]
    assert any("confounded with 'scanner'" in text for text in warnings), warnings
    again = ended(client, f"{ward}/checks", {"probe": probe, "columns": ["scanner"]})
    assert again["report"]["confounded"] == ["scanner"]
    listed = client.get(f"{ward}/qualities", params={"report": "check"}).json()["qualities"]
    assert [one["id"] for one in listed] == [again["id"], found["id"]] and "report" not in listed[0]
    refused = client.post(f"{ward}/checks", json={"columns": ["site"]})
    assert refused.status_code == 422 and "scanner" in refused.json()["remedy"]
    assert client.post("/v1/archives/nothing/checks", json={}).status_code == 404


def test_outliers_find_the_copy_and_go_with_delete(client: TestClient, ward: str) -> None:
    found = ended(client, f"{ward}/outliers", {"share": 0.1})
    report = found["report"]
    assert report["images"] == ITEMS and report["counts"]["copy"] >= 1 and report["counts"]["odd"] == 4
    copy = next(one for one in report["findings"] if one["kind"] == "copy")
    assert copy["rank"] == 1 and copy["score"] > 0.97 and copy["group"] != copy["other_group"]
    picture_of = client.get(f"{ward}/thumbnails/{copy['other']}")
    assert picture_of.status_code == 200 and cv2.imdecode(np.frombuffer(picture_of.content, np.uint8), 1) is not None
    assert client.post(f"{ward}/outliers", json={"share": 2}).status_code == 422
    unknown = client.post(f"{ward}/outliers", json={"probe": "0" * 32})
    assert unknown.status_code == 404 and "probe" in unknown.json()["detail"]
    assert client.delete(f"/v1/qualities/{found['id']}").status_code == 204
    assert client.get(f"/v1/qualities/{found['id']}").status_code == 404
    assert client.delete(f"/v1/qualities/{found['id']}").status_code == 404
    assert found["id"] not in [one["id"] for one in client.get(f"{ward}/qualities").json()["qualities"]]
