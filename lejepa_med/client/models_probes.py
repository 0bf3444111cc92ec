"""Answers about probes, predictions and neighbours."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lejepa_med.client.models import Answer, Problem


@dataclass(frozen=True, kw_only=True)
class ProbeVersion(Answer):
    """One version among those of its series."""

    id: str
    version: int
    count: int
    created: datetime


@dataclass(frozen=True, kw_only=True)
class Probe(Answer):
    """One version of a trained probe. `kind` is classification, multilabel or regression.

    `metrics` and `receipt` (of the cross-validation) and all `versions` come with `Client.probe` alone. `read_only`: it
    was trained with `lejepa-med probe`, and the service neither changes nor removes it. `cautions` say what to know of
    the images that it learnt from.
    """

    id: str
    name: str
    encoder: str
    fingerprint: str
    labels: list[str]
    count: int
    created: datetime
    kind: str = "classification"
    series: str = ""
    version: int = 1
    parent: str | None = None
    cautions: list[str] = field(default_factory=list)
    read_only: bool = False
    metrics: dict[str, Any] = field(default_factory=dict, repr=False)
    receipt: dict[str, Any] = field(default_factory=dict, repr=False)
    versions: list[ProbeVersion] = field(default_factory=list, repr=False)

    @classmethod
    def _value(cls, name: str, value: Any) -> Any:
        return [ProbeVersion.read(item) for item in value] if name == "versions" else super()._value(name, value)


@dataclass(frozen=True, kw_only=True)
class Prediction(Answer):
    """A probe's answer for one item, or the problem that stands for it.

    Classes have `label` and `probabilities`, labels of their own `labels` and `probabilities`, quantities `value` and
    the 90 % `interval`; what begins with `knn_` is the nearest labelled images' answer. `novelty`, 0 to 1, says how
    unlike the labelled images it is, `uncertainty`, 0 to 1, how much its label would teach the probe. `name` is the
    path of its file in the zip or folder that was sent, `key` the caller's own.

    `seen` is record where the probe learnt from this image, group where it learnt from others of its group, else no.
    What was seen is answered by the part of the cross-validation that has seen neither; where there is no such part,
    `in_sample` is true, and the answer must not be scored.
    """

    index: int
    file_index: int | None = None
    name: str | None = None
    key: str | int | None = None
    id: str | None = None
    seen: str | None = None
    in_sample: bool | None = None
    label: str | None = None
    labels: list[str] | None = None
    value: float | None = None
    interval: tuple[float, float] | None = None
    probabilities: dict[str, float] | None = None
    knn_label: str | None = None
    knn_labels: list[str] | None = None
    knn_value: float | None = None
    nearest_cosine: float | None = None
    novelty: float | None = None
    uncertainty: float | None = None
    note: str | None = None
    error: Problem | None = None

    @classmethod
    def _value(cls, name: str, value: Any) -> Any:
        return tuple(value) if name == "interval" and value is not None else super()._value(name, value)


@dataclass(frozen=True, kw_only=True)
class UncertainItem(Prediction):
    """An item to label next; `distance` to the nearest labelled or listed item, of unit vectors: 0 to 2.

    `columns` has its label and further metadata.
    """

    group: str
    distance: float
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Application(Answer):
    """A probe's predictions for a whole archive; `summary` has counts by label, or the spread of the value."""

    id: str
    probe: str
    archive: str
    fingerprint: str
    count: int
    created: datetime
    cautions: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Hit(Answer):
    """One neighbour; `score` is the cosine of the two vectors, `columns` its label and further metadata."""

    id: str
    group: str
    score: float
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Neighbours(Answer):
    """The neighbours of one item, the nearest first, or the problem that stands for them."""

    index: int
    id: str | None = None
    file_index: int | None = None
    name: str | None = None
    key: str | int | None = None
    hits: list[Hit] = field(default_factory=list)
    error: Problem | None = None

    @classmethod
    def _value(cls, name: str, value: Any) -> Any:
        return [Hit.read(hit) for hit in value] if name == "hits" else super()._value(name, value)
