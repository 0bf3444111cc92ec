"""Probes over HTTP: a handful of labels is posted, the job followed, and the validation split predicted and scored."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_adapters.errors import UserError, require

POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Item:
    """One labelled item of the archive: `id` in the embedding table, path below the archive, label, split."""

    id: str
    path: str
    label: str
    split: str


class Client:
    """The few requests that a probe needs. Problems of the service become UserErrors with its own remedy."""

    def __init__(self, url: str) -> None:
        httpx = require("httpx", extra="serve")
        self._transport_error = httpx.TransportError
        # trust_env: the proxies of a lab's environment must not see requests to this machine.
        self._http = httpx.Client(base_url=url, timeout=120, trust_env=False)

    def train(self, *, name: str, archive: str, items: Sequence[Item], tell: Callable[[float], None]) -> str:
        """POST /v1/probes with ids and labels, follow the job, and return the probe's address."""
        labels = [{"id": item.id, "label": item.label} for item in items]
        job = self._send("POST", "/v1/probes", {"name": name, "archive": archive, "labels": labels})
        while job["state"] in ("queued", "running"):
            tell(job["progress"])
            time.sleep(POLL_SECONDS)
            job = self._send("GET", f"/v1/jobs/{job['id']}")
        if job["state"] != "succeeded":
            error = job.get("error") or {}
            raise UserError(
                f"The probe's job ended as {job['state']}: {error.get('detail', 'no reason given')}",
                remedy=error.get("remedy", ""),
            )
        tell(1.0)
        return str(job["result"])

    def predict(self, probe: str, *, archive: str, items: Sequence[Item]) -> list[str]:
        """POST .../predictions for items of the table; their classes."""
        answer = self._send("POST", f"{probe}/predictions", {"archive": archive, "ids": [item.id for item in items]})
        return [found["label"] for found in answer["items"]]

    def embedded(self, archive: str) -> set[str]:
        """Ids of a table; rows that could not be read are not among them."""
        found: set[str] = set()
        link: str | None = f"/v1/archives/{archive}/ids?limit=10000"
        while link:
            page = self._send("GET", link)
            found |= {item["id"] for item in page["items"]}
            link = page["next"]
        return found

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        try:
            response = self._http.request(method, path, json=body)
        except self._transport_error as error:
            raise UserError(
                f"The service stopped answering ({type(error).__name__}).", remedy="See its log, service.log."
            ) from error
        if response.is_error:
            try:
                problem = response.json()
            except ValueError:
                problem = {}
            raise UserError(
                f"{method} {path} was answered with {response.status_code}: {problem.get('detail', 'no reason given')}",
                remedy=problem.get("remedy", ""),
            )
        return response.json()


def draw_labels(items: Sequence[Item], *, per_class: int, seed: int) -> list[Item]:
    """`per_class` items of each class, at random."""
    rng = np.random.default_rng(seed)
    chosen: list[Item] = []
    for label in sorted({item.label for item in items}):
        of_class = [item for item in items if item.label == label]
        chosen += [of_class[i] for i in rng.permutation(len(of_class))[:per_class]]
    return chosen


def balanced_accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean over classes of the share of a class that is found."""
    actual, given = np.array(truth), np.array(predicted)
    return float(np.mean([(given[actual == label] == label).mean() for label in np.unique(actual)]))


def budgets(items: Sequence[Item], wanted: Sequence[int]) -> list[int]:
    """The numbers of labels per class that the smallest class can pay for; at least one."""
    labels = [item.label for item in items]
    smallest = min(labels.count(label) for label in set(labels))
    return [n for n in wanted if n <= smallest] or [smallest]
