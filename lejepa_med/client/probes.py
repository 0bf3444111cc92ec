"""Probes: trained on labels, improved by more, applied to files, items and whole archives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lejepa_med.client.calls import Calls, form_fields, given_fields, part
from lejepa_med.client.files import File, Keys, sent_keys, warned, with_names
from lejepa_med.client.wire.common import Job
from lejepa_med.client.wire.probes import Application, PredictedItem, Probe, ProbeDetail, UncertainItem


class ProbeCalls(Calls):
    """The part of the client about probes."""

    def train_probe(
        self,
        files: Sequence[File],
        labels: Sequence[Any],
        *,
        groups: Sequence[str] | None = None,
        encoder: str | None = None,
        name: str | None = None,
        folds: int | None = None,
        mpp: float | None = None,
        keys: Keys | None = None,
        **options: Any,
    ) -> Job:
        """Train a probe on labelled files: `labels` and `groups` (patient, slide case, field) are one for each file.

        The probe has the job's id. An error about a file names its key. `options` are further fields of the form.
        """
        options |= {"labels": list(labels), "groups": groups, "keys": sent_keys(files, keys)}
        fields = form_fields(encoder=encoder, name=name, folds=folds, mpp=mpp, **options)
        sent = self._http.json("POST", "/v1/probes", files=list(files), fields=fields, repeatable=False)
        return _warned(Job.read(sent), files)

    def train_probe_on(
        self,
        archive: str,
        labels: Mapping[str, Any],
        *,
        groups: Mapping[str, str] | None = None,
        name: str | None = None,
        folds: int | None = None,
        **options: Any,
    ) -> Job:
        """Train a probe on embedded items: `labels`, and `groups` where the table's do not do, by id.

        The probe has the job's id. `options` are further fields of the service's ProbeRequest.
        """
        items = _labelled(labels, groups)
        body = given_fields(archive=archive, labels=items, name=name, folds=folds, **options)
        return _warned(Job.read(self._http.json("POST", "/v1/probes", body=body, repeatable=False)))

    def add_labels(
        self,
        probe: str,
        files: Sequence[File],
        labels: Sequence[Any],
        *,
        groups: Sequence[str] | None = None,
        mpp: float | None = None,
        keys: Keys | None = None,
    ) -> Job:
        """Train the probe's next version on all its labels and those of these files; it has the job's id."""
        fields = form_fields(labels=list(labels), groups=groups, mpp=mpp, keys=sent_keys(files, keys))
        path = f"/v1/probes/{part(probe)}/labels"
        return _warned(
            Job.read(self._http.json("POST", path, files=list(files), fields=fields, repeatable=False)), files
        )

    def add_labels_on(
        self,
        probe: str,
        archive: str,
        labels: Mapping[str, Any],
        *,
        groups: Mapping[str, str] | None = None,
        allow_leak: bool = False,
    ) -> Job:
        """Train the probe's next version on all its labels and these, by id; it has the job's id."""
        body = {"archive": archive, "labels": _labelled(labels, groups), "allow_leak": allow_leak}
        path = f"/v1/probes/{part(probe)}/labels"
        return _warned(Job.read(self._http.json("POST", path, body=body, repeatable=False)))

    def uncertain(self, probe: str, archive: str, *, limit: int = 50) -> list[UncertainItem]:
        """The items of a table whose labels would teach the probe most, the first one first."""
        path, params = f"/v1/probes/{part(probe)}/uncertain", {"archive": archive, "limit": limit}
        found = self._http.json("GET", path, params=params)
        warned(found.get("cautions", []))
        return [UncertainItem.read(item) for item in found["items"]]

    def probes(self) -> list[Probe]:
        """All versions of all probes, newest first."""
        return [Probe.read(item) for item in self._http.pages("/v1/probes?limit=1000", name="probes")]

    def probe(self, probe: str) -> ProbeDetail:
        """One probe with its metrics and versions."""
        return ProbeDetail.read(self._http.json("GET", f"/v1/probes/{part(probe)}"))

    def predict_files(
        self,
        probe: str,
        files: Sequence[File],
        *,
        mpp: float | None = None,
        groups: Sequence[str | None] | None = None,
        keys: Keys | None = None,
    ) -> list[PredictedItem]:
        """A probe's answers for files; `keys` as of `embed`.

        `groups`, one for each file, marks those of groups that the probe learnt from.
        """
        path = f"/v1/probes/{part(probe)}/predictions"
        fields = form_fields(mpp=mpp, groups=groups, keys=sent_keys(files, keys))
        found = self._http.json("POST", path, files=list(files), fields=fields)
        warned(found.get("cautions", []), files)
        return list(with_names(map(PredictedItem.read, found["items"]), files))

    def predict_items(self, probe: str, archive: str, ids: Sequence[str]) -> list[PredictedItem]:
        """A probe's answers for items of a table."""
        path = f"/v1/probes/{part(probe)}/predictions"
        found = self._http.json("POST", path, body={"archive": archive, "ids": list(ids)})
        warned(found.get("cautions", []))
        return [PredictedItem.read(item) for item in found["items"]]

    def apply_probe(self, probe: str, archive: str) -> Job:
        """Predict every item of an archive. The application has the job's id."""
        path = f"/v1/probes/{part(probe)}/applications"
        return Job.read(self._http.json("POST", path, body={"archive": archive}, repeatable=False))

    def applications(self, probe: str) -> list[Application]:
        """Applications of a probe, newest first."""
        found = self._http.pages(f"/v1/probes/{part(probe)}/applications?limit=1000", name="applications")
        return [Application.read(item) for item in found]

    def application(self, application: str) -> Application:
        """One application: how many items have which label."""
        return Application.read(self._http.json("GET", f"/v1/applications/{part(application)}"))

    def remove_application(self, application: str) -> None:
        """Remove its predictions; the probe stays."""
        self._http.nothing("DELETE", f"/v1/applications/{part(application)}")

    def download_application(self, application: str, to: str | Path) -> Path:
        """Write the predictions to the file `to`, which must not be there: CSV for '.csv', else Parquet."""
        to = Path(to)
        accept = "text/csv" if to.suffix == ".csv" else "application/vnd.apache.parquet"
        return self._http.download(f"/v1/applications/{part(application)}/table", to, accept=accept)


def _labelled(labels: Mapping[str, Any], groups: Mapping[str, str] | None) -> list[dict[str, Any]]:
    groups = groups or {}
    return [
        {"id": item, "label": label, **({"group": groups[item]} if item in groups else {})}
        for item, label in labels.items()
    ]


def _warned(job: Job, files: Sequence[File] = ()) -> Job:
    """A job that was accepted, with its cautions in the caller's names; warns of them."""
    return job.model_copy(update={"cautions": warned(job.cautions or [], files, level=4)})
