"""One file, looked at: what the encoder sees of it, what it resembles, and what every probe says."""

from typing import Literal

from pydantic import Field

from lejepa_med.client.wire.common import CAUTIONS, Answer, ProbeKind
from lejepa_med.client.wire.probes import Hit, PredictedItem

MOST_PARTS = 256


class InspectedPart(Answer):
    """One slice, tile or plane. Pictures are data: addresses."""

    index: int = Field(description="position among all parts of the item")
    image: str = Field(description="WebP; what the encoder sees")
    features: str | None = Field(
        default=None, description="PNG, a pixel a patch: the features' first three components as red, green and blue"
    )
    attention: str | None = Field(default=None, description="PNG, a grey pixel a patch: the last block's attention")


class Neighbour(Hit):
    """A similar item of the archive."""

    distance: float = Field(examples=[0.37], description="of the unit vectors: 0 .. 2")


class ProbePrediction(PredictedItem):
    """What one probe says."""

    probe: str
    probe_name: str = Field(examples=["morphology"])
    kind: ProbeKind


class Inspection(Answer):
    """One item of one file."""

    encoder: str
    fingerprint: str
    modality: str
    name: str | None = Field(default=None, description="name in the zip that was sent, of a series its first file")
    item: int = Field(description="which item of the file this is, from 0")
    items: int = Field(examples=[1], description="items of the file")
    unit: Literal["image", "slice", "tile", "plane"] = Field(
        description="what a part is; plane: of a volume, seen whole"
    )
    count: int = Field(examples=[24], description="parts of the item, of which `parts` may hold some")
    width: int = Field(examples=[224], description="of a part, pixels")
    height: int = Field(examples=[224])
    shown: str = Field(examples=["grey"], description="which channels are shown in which colour")
    parts: list[InspectedPart]
    features_note: str | None = Field(default=None, description="why there are no features")
    attention_note: str | None = Field(default=None, description="why there is no attention")
    archive: str | None = Field(default=None, description="where the neighbours are")
    neighbours: list[Neighbour] | None = Field(default=None, description="the nearest first")
    predictions: list[ProbePrediction] = Field(description="of the newest version of each probe of this encoder")
    novel: bool | None = Field(
        default=None,
        description="whether a probe finds the image unlike everything labelled; none without probes",
    )
    cautions: list[str] = Field(default=[], description=CAUTIONS)
