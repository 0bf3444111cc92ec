"""The part of the client behind the lab page: pictures and maps of a table, sets of labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lejepa_med.client.files import File
from lejepa_med.client.http import Http, form_fields, given_fields, part
from lejepa_med.client.wire.common import Job
from lejepa_med.client.wire.images import ArchiveMap, Folders, TableColumns, TrainingCurve
from lejepa_med.client.wire.inspection import Inspection
from lejepa_med.client.wire.labels import ImportedLabels, LabelSet, LabelSetDetail, NextItems
from lejepa_med.client.wire.probes import Evaluation
from lejepa_med.client.wire.quality import Quality, QualitySummary

if TYPE_CHECKING:
    import numpy as np

ANY = "*"  # in place of a version: whichever the set has


class LabClient:
    """Methods of `Client`. Those that give arrays need NumPy."""

    _http: Http

    # --- what a table looks like ------------------------------------------------------------------------------------

    def thumbnail(self, archive: str, item: str) -> bytes:
        """The WebP picture of what the encoder saw of an item.

        Raises:
            NotFoundError: no such item, or the table has no thumbnails.
        """
        return self._http.content(f"/v1/archives/{part(archive)}/thumbnails/{part(item)}")

    def archive_map(self, archive: str) -> ArchiveMap:
        """Which two-dimensional maps of a table there are."""
        return ArchiveMap.read(self._http.json("GET", f"/v1/archives/{part(archive)}/map"))

    def make_map(self, archive: str) -> Job:
        """Make the neighbour embedding (t-SNE) of a table."""
        return Job.read(self._http.json("POST", f"/v1/archives/{part(archive)}/map", repeatable=False))

    def map_points(self, archive: str, *, method: str = "pca") -> "np.ndarray":
        """The places of a table's items on a map, (N, 2) float32 in [-1, 1], in the order of its ids.

        Raises:
            NotFoundError: 'tsne' has not been made.
        """
        import numpy as np

        found = self._http.content(f"/v1/archives/{part(archive)}/map/points", params={"method": method})
        return np.frombuffer(found, "<f4").reshape(-1, 2)

    def columns(self, archive: str | None = None, *, application: str | None = None) -> TableColumns:
        """The columns of a table, or of an application's predictions."""
        return TableColumns.read(self._http.json("GET", _columns(archive, application)))

    def column(self, name: str, archive: str | None = None, *, application: str | None = None) -> list[Any]:
        """The values of a column, None where there is none, in the order of the table's ids."""
        import numpy as np

        found = self._http.content(f"{_columns(archive, application)}/{part(name)}")
        told = next(one for one in self.columns(archive, application=application).columns if one.name == name)
        if told.kind == "id":
            return [word.decode() for word in np.frombuffer(found, "S32").tolist()]
        if told.kind == "number":
            return [None if value != value else value for value in np.frombuffer(found, "<f4").tolist()]
        words = dict(enumerate(told.values or []))
        return [words.get(code) for code in np.frombuffer(found, np.dtype(told.dtype).newbyteorder("<")).tolist()]

    # --- one file, a probe and an encoder in detail -----------------------------------------------------------------

    def inspect(
        self,
        file: File,
        *,
        encoder: str | None = None,
        archive: str | None = None,
        k: int = 10,
        item: int = 0,
        parts: int | None = None,
        overlay: bool = True,
        mpp: float | None = None,
    ) -> Inspection:
        """What the encoder sees of a file, what of `archive` is like it, and what every probe of the encoder says.

        Args:
            file: a path, a folder (a DICOM series), or (bytes, suffix).
            encoder: its id; may be left out where the service has only one.
            archive: where `k` neighbours are looked for; None: nowhere.
            k: how many.
            item: which item, where the file holds several.
            parts: slices, tiles or planes of the answer at most.
            overlay: compute the features and the attention of each patch, too.
            mpp: um per pixel, where a slide or tile does not say.
        """
        fields = form_fields(encoder=encoder, archive=archive, k=k, item=item, parts=parts, overlay=overlay, mpp=mpp)
        return Inspection.read(self._http.json("POST", "/v1/inspect", files=[file], fields=fields))

    def evaluation(self, probe: str) -> Evaluation:
        """What lies behind a probe's scores: out-of-fold answers, confusion matrix, ROC and calibration curves."""
        return Evaluation.read(self._http.json("GET", f"/v1/probes/{part(probe)}/evaluation"))

    def training_curve(self, encoder: str, *, points: int = 500) -> TrainingCurve:
        """How an encoder was trained: at most `points` records of its run as curves by name."""
        path, params = f"/v1/encoders/{part(encoder)}/curve", {"points": points}
        return TrainingCurve.read(self._http.json("GET", path, params=params))

    def download_report(self, encoder: str, to: str | Path) -> Path:
        """Write the report of an encoder's run (HTML) to the file `to`, which must not be there.

        Raises:
            NotFoundError: the encoder came without its run.
        """
        return self._http.download(f"/v1/encoders/{part(encoder)}/report", Path(to))

    def folders(self, path: str = "") -> Folders:
        """Folders that the operator has opened, below `path`; each can be the `folder` of `embed_archive`."""
        return Folders.read(self._http.json("GET", "/v1/folders", params={"path": path}))

    # --- labels -----------------------------------------------------------------------------------------------------

    def new_label_set(
        self, name: str, archive: str, *, kind: str = "classification", classes: Sequence[str] = ()
    ) -> LabelSet:
        """Make an empty set of labels for the items of a table; `kind` as of probes."""
        body = {"name": name, "archive": archive, "kind": kind, "classes": list(classes)}
        return LabelSet.read(self._http.json("POST", "/v1/label-sets", body=body, repeatable=False))

    def label_sets(self, archive: str | None = None) -> list[LabelSet]:
        """All sets, or those of an archive, newest first."""
        found = self._http.pages("/v1/label-sets?limit=1000", name="label_sets")
        return [one for one in map(LabelSet.read, found) if archive in (None, one.archive)]

    def label_set(self, label_set: str) -> LabelSetDetail:
        """A set with its labels."""
        return LabelSetDetail.read(self._http.json("GET", f"/v1/label-sets/{part(label_set)}"))

    def change_labels(
        self,
        label_set: str,
        labels: Mapping[str, Any],
        *,
        version: int | None = None,
        rename: Mapping[str, str] | None = None,
        classes: Sequence[str] | None = None,
        name: str | None = None,
    ) -> LabelSet:
        """Change labels by id (None removes one), and names; kept when this returns.

        Args:
            label_set: its id.
            labels: by id.
            version: of the set that the change was made for; None overwrites what others did meanwhile.
            rename: new names of classes by old ones.
            classes: in the order of display.
            name: of the set.

        Raises:
            ConflictError: the set has another version by now; `error.problem.more` has both versions.
        """
        items = [{"id": item, "label": label} for item, label in labels.items()]
        more = {"rename": dict(rename) if rename else None, "classes": None if classes is None else list(classes)}
        body = given_fields(labels=items, name=name, **more)
        path = f"/v1/label-sets/{part(label_set)}"
        return LabelSet.read(self._http.json("PATCH", path, body=body, headers=_match(version), repeatable=False))

    def remove_label_set(self, label_set: str) -> None:
        """Remove a set; probes that learnt from it stay."""
        self._http.nothing("DELETE", f"/v1/label-sets/{part(label_set)}")

    def export_labels(self, label_set: str) -> str:
        """The labels of a set as CSV, as `lejepa-med probe` reads it."""
        return self._http.content(f"/v1/label-sets/{part(label_set)}/csv").decode()

    def import_labels(
        self, label_set: str, csv: str, *, version: int | None = None, replace: bool = False
    ) -> ImportedLabels:
        """Take labels from CSV with the columns id and label; `version` as of `change_labels`.

        `replace` removes the labels of items that the CSV does not name.
        """
        path, body = f"/v1/label-sets/{part(label_set)}/csv", {"csv": csv, "replace": replace}
        found = self._http.json("POST", path, body=body, headers=_match(version), repeatable=False)
        return ImportedLabels.read(found)

    def next_to_label(self, label_set: str, *, probe: str | None = None, limit: int = 20) -> NextItems:
        """Items without a label that would teach most: uncertain to `probe`, else far from what is labelled."""
        path = f"/v1/label-sets/{part(label_set)}/next"
        return NextItems.read(self._http.json("GET", path, params=given_fields(probe=probe, limit=limit)))

    def train_probe_from(self, label_set: str, *, probe: str | None = None, **options: Any) -> Job:
        """Train a probe on a set of labels, or the next version of `probe`; it has the job's id.

        `options` are further fields of the service's ProbeRequest, such as name and archive.
        """
        path = "/v1/probes" if probe is None else f"/v1/probes/{part(probe)}/labels"
        body = {"label_set": label_set, **options}
        return Job.read(self._http.json("POST", path, body=body, repeatable=False))

    # --- quality ----------------------------------------------------------------------------------------------------

    def check_archive(
        self,
        archive: str,
        *,
        probe: str | None = None,
        columns: Sequence[str] | None = None,
        leave_out: str | None = None,
    ) -> Job:
        """Measure whether an archive's vectors give away how its images were made. The report has the job's id.

        Args:
            archive: its name.
            probe: whose labels are put beside the columns; by default the catalogue's.
            columns: to measure; by default all.
            leave_out: a column such as site, for a score on sites that the probe has not seen.
        """
        body = given_fields(probe=probe, columns=None if columns is None else list(columns), leave_out=leave_out)
        return Job.read(self._http.json("POST", f"/v1/archives/{part(archive)}/checks", body=body, repeatable=False))

    def find_outliers(self, archive: str, *, probe: str | None = None, share: float | None = None) -> Job:
        """List the images of an archive that a person should look at. The report has the job's id."""
        body = given_fields(probe=probe, share=share)
        return Job.read(self._http.json("POST", f"/v1/archives/{part(archive)}/outliers", body=body, repeatable=False))

    def qualities(self, archive: str) -> list[QualitySummary]:
        """Quality reports of an archive, newest first, without their findings."""
        found = self._http.pages(f"/v1/archives/{part(archive)}/qualities?limit=1000", name="qualities")
        return [QualitySummary.read(item) for item in found]

    def quality(self, quality: str) -> Quality:
        """One quality report."""
        return Quality.read(self._http.json("GET", f"/v1/qualities/{part(quality)}"))

    def remove_quality(self, quality: str) -> None:
        """Remove a quality report."""
        self._http.nothing("DELETE", f"/v1/qualities/{part(quality)}")


def _match(version: int | None) -> dict[str, str]:
    return {"If-Match": ANY if version is None else f'"{version}"'}


def _columns(archive: str | None, application: str | None) -> str:
    if (archive is None) == (application is None):
        raise ValueError("give an archive or an application")
    return f"/v1/archives/{part(archive)}/columns" if archive else f"/v1/applications/{part(application or '')}/columns"
