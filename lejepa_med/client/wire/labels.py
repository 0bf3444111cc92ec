"""Sets of labels: saved under a name, changed by several people, and learnt from by probes."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from lejepa_med.client.wire.common import NEWER, Answer, GivenLabel, Label, Name, ProbeKind, Problem, Request
from lejepa_med.client.wire.probes import UncertainItem

MOST_LABELS = 100_000  # of one request
Classes = Annotated[list[Label], Field(max_length=1000)]
Kind = Literal["classification", "multilabel", "regression"]


class LabelSetRequest(Request):
    """A new, empty set of labels."""

    name: Name = Field(examples=["morphology, first round"])
    archive: str = Field(max_length=300, examples=["galaxies-val"], description="the table whose items are labelled")
    kind: Kind = Field(default="classification", description="texts, lists of texts, or numbers")
    classes: Classes = Field(default=[], examples=[["spiral", "elliptical"]], description="in the order of display")


class LabelSet(Answer):
    """A set of labels without the labels."""

    id: str
    name: str
    archive: str
    kind: ProbeKind
    classes: list[str] = Field(description="in the order of display; empty for numbers")
    version: int = Field(examples=[7], description="counts the changes; the ETag of the set")
    count: int = Field(examples=[120], description="labelled items")
    created: datetime
    updated: datetime


class LabelSets(Answer):
    """Sets of labels, newest first."""

    label_sets: list[LabelSet]
    next: str | None = Field(default=None, description="link to the next page")


class SetLabel(Answer):
    """The label of one item."""

    id: str
    label: Any = Field(default=None, description="a text, a list of texts or a number; none: it was removed")
    version: int = Field(description="version of the set that brought it")
    at: datetime


class LabelSetDetail(LabelSet):
    """A set of labels."""

    labels: list[SetLabel]


class ItemLabel(Request):
    """A label that a request gives."""

    id: str = Field(max_length=200, examples=["5f0c7e1b9a3d4c2e8f6a1b0c9d8e7f6a"])
    label: GivenLabel = Field(examples=["spiral"], description="null removes the item's label")


class LabelSetChange(Request):
    """A change of a set; what is left out stays."""

    name: Name | None = None
    classes: Classes | None = Field(default=None, description="in the order of display; used ones are never lost")
    rename: dict[Label, Label] = Field(default={}, max_length=100, description="new names of classes by old ones")
    labels: list[ItemLabel] = Field(default=[], max_length=MOST_LABELS)


class LabelTable(Request):
    """Labels as CSV."""

    csv: str = Field(examples=["id,label\n5f0c7e1b,spiral\n"], description="columns id and label")
    replace: bool = Field(default=False, description="remove the labels of items that the CSV does not name")


class ImportedLabels(LabelSet):
    """A set after an import."""

    imported: int = Field(examples=[120], description="labels that were taken")
    unknown: int = Field(description="rows whose id the archive does not have; they are left out")
    missing: int = Field(description="rows without a label")


class Disagreement(Answer):
    """An item that two people labelled differently. A label that is not there was removed."""

    id: str
    yours: Any = None
    theirs: Any = None


class LabelConflict(Problem):
    """The set was changed since the version that the request names, so nothing was written."""

    yours: dict[str, Any] = Field(description="the request's own body")
    current: LabelSet
    theirs: list[SetLabel] = Field(description="labels that changed since the request's version")
    conflicts: list[Disagreement] = Field(description="items to which both gave different labels")


class NextItems(Answer):
    """Items whose labels would teach most, the first one first."""

    label_set: str
    archive: str
    probe: str | None = Field(default=None, description="whose uncertainty counts")
    by: Annotated[Literal["uncertainty", "distance"], NEWER] = Field(
        description="uncertainty times distance to what is labelled or listed; without a probe the distance alone"
    )
    items: list[UncertainItem] = Field(description="without a probe nothing is predicted")
