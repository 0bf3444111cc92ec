"""From a request with labels, as JSON or with files, to the plan of a training job. Nothing in a plan is a name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

from app.core.errors import ProblemError, file_of, first_bad, not_found
from app.core.settings import Settings
from app.encoders.library import Library
from app.store import Store
from app.uploads.bodies import Form, parse_field
from app.uploads.file_items import Area, cautions_of, read_names, request_items
from app.uploads.sandbox import Sandbox
from data_adapters.errors import UserError
from data_adapters.identity import group_id
from data_adapters.tables import FIRST, meaning
from lejepa_med.client.wire.common import GivenLabel, Label, Name
from lejepa_med.client.wire.probes import LabelledId, LabelsRequest, ProbeRequest
from lejepa_med.probes.label_table import clean_labels

Folds = Annotated[int, Ge(2), Le(20)]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training job learns from, beside its vectors or files.

    Attributes:
        name: of the probe.
        encoder: id of the encoder.
        fingerprint: of the encoder.
        labels: texts, numbers, or lists of texts.
        groups: pseudonyms; "" for a file that is its own group.
        ids: archive/id of each item; none for files, whose ids come from their content.
        folds: of the cross-validation.
        seed: of folds and intervals.
        balanced: None is the default of the probe's kind.
        files: (name, bytes) of each upload that has a label.
        places: which files of the request these are.
        region: x, y, width, height of all files.
        mpp: of all files.
        table_groups: groups of the items in their table, or in the files themselves ("" where they name none).
        relatives: group by id of items that were named with a group and without a label.
        series: the probe that gets these labels; None makes a new one.
        table: what of the given labels was used, and what was missing; it becomes a part of the probe's metrics.
        cautions: what to know of the images before using the probe, without names; likewise.
        label_set: id and version of the set that the labels came from; likewise. A next version then learns from the
            set alone.
    """

    name: str
    encoder: str
    fingerprint: str
    labels: list[Any]
    groups: list[str]
    ids: list[str] = field(default_factory=list)
    table_groups: list[str] = field(default_factory=list)
    relatives: dict[str, str] = field(default_factory=dict)
    folds: int = 5
    seed: int = 0
    balanced: bool | None = None
    files: list[tuple[str, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    region: tuple[int, int, int, int] | None = None
    mpp: float | None = None
    series: str | None = None
    table: dict[str, Any] | None = None
    cautions: list[str] = field(default_factory=list)
    label_set: dict[str, Any] | None = None


@dataclass(frozen=True)
class Picked:
    """Labelled rows of an embedding table: vectors (n, dim) and what goes into a plan."""

    encoder: str
    fingerprint: str
    vectors: np.ndarray
    ids: list[str]
    labels: list[Any]
    groups: list[str]
    table_groups: list[str]
    relatives: dict[str, str]
    table: dict[str, Any]
    cautions: list[str]

    def plan(self, **settings: Any) -> Plan:
        """The plan that learns from them; `settings` are the other fields of `Plan`."""
        return Plan(**{name: value for name, value in vars(self).items() if name != "vectors"}, **settings)


def pick(library: Library, archive: str, given: Sequence[LabelledId], *, allow_leak: bool) -> Picked:
    """The items of a table that were labelled.

    Raises:
        ProblemError: no such table or id, or a leak that is not allowed.
        UserError: an id is labelled twice, or no label is left.
    """
    table = library.table(archive)
    first: dict[str, int] = {}
    for index, item in enumerate(given):
        if first.setdefault(item.id, index) != index:
            raise UserError(
                f"The items at positions {first[item.id]} and {index} have one id.", remedy="Give each id once."
            )
    rows_of([item.id for item in given], table.ids)  # also of those without a label
    places, labels, report = kept([item.label for item in given], items=len(table.ids))
    # The table's groups are pseudonyms already; kept, they give the same folds as `lejepa-med probe`.
    known = set(table.groups)
    named = {
        item.id: group if group in known else group_id(group)
        for item in given
        if (group := meaning(item.group or "")) is not None
    }
    ids = [given[place].id for place in places]
    rows = rows_of(ids, table.ids)
    table_groups = [table.groups[row] for row in rows]
    groups = [named.pop(name, group) for name, group in zip(ids, table_groups, strict=True)]
    leak = table.leak(dict(zip(rows, groups, strict=True)))
    if leak is not None:
        report["leak"] = leak.report()
        if not allow_leak:
            raise ProblemError(
                422,
                "leak",
                f"LEAK: {leak}. Scores on such a split are too high. The first groups: {', '.join(leak.first)}.",
                remedy="Correct 'group' and 'split' of the catalogue (lejepa-med split makes a clean one), and embed "
                "the archive again. With allow_leak: true the probe learns all the same.",
            )
    return Picked(
        encoder=library.encoder_of(table.encoder) or table.name,
        fingerprint=table.encoder,
        vectors=table.vectors[rows],
        ids=[f"{archive}/{name}" for name in ids],
        labels=labels,
        groups=groups,
        table_groups=table_groups,
        relatives=named,
        table=report,
        cautions=table.info.get("cautions", []),
    )


def kept(labels: Sequence[Any], *, items: int) -> tuple[list[int], list[Any], dict[str, Any]]:
    """Places and values of the labels that are not missing, and the report of them, as `lejepa-med probe` has it.

    Raises:
        UserError: no label is left, or a missing word stands in a list.
    """
    places, values, missing = clean_labels(labels)
    if labels and not places:
        raise UserError("Every label is missing.", remedy="Give a class, a number or a list of texts for each item.")
    report = {
        "rows": len(labels),
        "missing": dict(missing),
        "used": len(places),
        "items": len(places),
        "items_without_label": items - len(places),
    }
    return places, values, report


@dataclass(frozen=True)
class Given:
    """The labels of a JSON request: of the request itself, or of a label set, which `label_set` then names."""

    archive: str
    labels: Sequence[LabelledId]
    label_set: dict[str, Any] | None = None


def given_labels(library: Library, store: Store, wanted: ProbeRequest | LabelsRequest) -> Given:
    """The labels of a request.

    Raises:
        ProblemError: 404, no such set or archive; 422, neither or both kinds of labels are given, or none is left.
    """
    if wanted.label_set is None:
        if wanted.archive is None or wanted.labels is None:
            raise ProblemError(
                422,
                "invalid-request",
                "The request names no labels.",
                remedy="Give 'archive' and 'labels', or 'label_set'.",
            )
        return Given(wanted.archive, wanted.labels)
    if wanted.labels is not None:
        raise ProblemError(
            422, "invalid-request", "The request has 'labels' and 'label_set'.", remedy="Give one of the two."
        )
    found = store.labelled(wanted.label_set)
    if found is None:
        raise not_found("label set", remedy="GET /v1/label-sets lists the sets.")
    row, labels = found
    archive = wanted.archive or row.archive
    known = set(library.table(archive).ids)
    kept = [LabelledId(id=one.item, label=one.value) for one in labels if one.item in known]
    if not kept:
        raise ProblemError(
            422,
            "no-labels",
            "The label set has no label of an item in this archive.",
            remedy="Label some of its items, or name the archive whose items the set labels.",
        )
    return Given(archive, kept, {"id": row.id, "version": row.version, "left_out": len(labels) - len(kept)})


def plan_of_archive(library: Library, given: Given, wanted: ProbeRequest) -> tuple[Plan, np.ndarray]:
    """The plan of a new probe and its vectors (n, dim).

    Raises:
        ProblemError: no such table or id.
        UserError: an id is labelled twice, or the table is of another encoder.
    """
    picked = pick(library, given.archive, given.labels, allow_leak=wanted.allow_leak)
    if wanted.encoder is not None and wanted.encoder != picked.encoder:
        raise UserError(
            "The archive was not embedded with this encoder.",
            remedy="Leave out 'encoder', or embed the archive again with it: lejepa-med embed",
        )
    plan = picked.plan(
        name=wanted.name or given.archive[:120],
        folds=wanted.folds,
        seed=wanted.seed,
        balanced=wanted.balanced,
        label_set=given.label_set,
    )
    return plan, picked.vectors


def plan_of_files(
    library: Library, settings: Settings, sandbox: Sandbox, form: Form, *, encoder: str | None
) -> tuple[Plan, list[str]]:
    """The plan for a form's files, and its cautions with the sender's own names of the files.

    Headers are read now, so that a wrong file is refused at once.

    Raises:
        ProblemError: labels or groups that do not fit the files, a file that cannot be read or holds several items.
    """
    labels: list[Any] = parse_field(form, "labels", list[GivenLabel], [])
    count = len(form.uploads)
    _check_count(form, "labels", labels)
    groups = groups_of(form)
    encoder_id, loaded, _ = library.encoder(encoder)
    place = Area.parse(form.fields.get("region"), form.fields.get("mpp"))
    names = read_names(form, settings)
    found = request_items(loaded.adapter, form.uploads, place, settings=settings, sandbox=sandbox, names=names)
    for index, source in enumerate(found):
        if source.problem is not None:
            raise first_bad(source.problem, index, source.file_index, name=source.name, key=source.key)
    for index, number in sorted(Counter(source.file_index for source in found).items()):
        if number != 1:
            _, key = names.of(index, "")
            raise ProblemError(
                422,
                "several-items",
                f"{file_of(index, key=key)} holds {number} items, but has one label.",
                remedy="Send each labelled image, series or volume as a file of its own; or send them as an upload "
                "(POST /v1/uploads), and label its items by id.",
                file_index=index,
                key=key,
            )
    places, labels, report = kept(labels, items=count)
    own = {source.file_index: source.group for source in found}
    named = [group_id(group) if (group := groups[place]) is not None else own[place] for place in places]
    files = [form.uploads[place] for place in places]
    used = [source for source in found if source.file_index in set(places)]
    plan = Plan(
        name=_name(form, encoder_id),
        encoder=encoder_id,
        fingerprint=loaded.fingerprint,
        labels=labels,
        groups=named,
        table_groups=[own[place] for place in places],
        folds=parse_field(form, "folds", Folds, 5),
        seed=parse_field(form, "seed", Annotated[int, Ge(0), Le(2**31 - 1)], 0),
        balanced=parse_field(form, "balanced", bool),
        files=[(upload.path.name, upload.size) for upload in files],
        places=places,
        region=place.region,
        mpp=place.mpp,
        table=report,
        cautions=cautions_of(loaded.adapter, used, named=False),
    )
    return plan, cautions_of(loaded.adapter, used)


def groups_of(form: Form) -> list[str | None]:
    """The group of each file that the field `groups` names; None where it names none.

    Raises:
        ProblemError: it is no list with one entry for each file.
    """
    groups: list[str | None] | None = parse_field(form, "groups", list[Label | None])
    if groups is None:
        return [None] * len(form.uploads)
    _check_count(form, "groups", groups)
    return [meaning(group or "") for group in groups]


def _check_count(form: Form, what: str, given: Sequence[Any]) -> None:
    if len(given) != len(form.uploads):
        raise ProblemError(
            422,
            "invalid-request",
            f"The request has {len(form.uploads)} files and {len(given)} {what}.",
            remedy=f"Give '{what}' as a JSON list with one entry for each file, in the order of the files.",
        )


def rows_of(ids: Sequence[str], known: Sequence[str]) -> list[int]:
    """Row numbers of `ids` in a table.

    Raises:
        ProblemError: 422, an id is not in the table.
    """
    place = {name: row for row, name in enumerate(known)}
    unknown = [index for index, wanted in enumerate(ids) if wanted not in place]
    if unknown:
        some = ", ".join(map(str, unknown[:FIRST])) + (" and others" if len(unknown) > FIRST else "")
        raise ProblemError(
            422,
            "unknown-id",
            f"The archive has no item with the id at position {some}."
            if len(unknown) == 1
            else f"The archive has no items with {len(unknown)} of the {len(ids)} ids, at the positions {some}.",
            remedy="GET /v1/archives/{name}/ids lists the ids.",
            index=unknown[0],
        )
    return [place[wanted] for wanted in ids]


def _name(form: Form, default: str) -> str:
    text = form.fields.get("name", "")
    if not text:
        return default[:120]
    try:
        return TypeAdapter(Name).validate_python(text)
    except ValidationError:
        raise ProblemError(
            422,
            "invalid-request",
            "The probe's name has more than 120 characters, or control characters.",
            remedy="Give a shorter 'name' in plain text.",
        ) from None
