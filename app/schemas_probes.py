"""What labels for a probe, and advice on what to label next, look like over the wire."""

from pydantic import BaseModel, Field

from app.schemas import LabelledId, PredictedItem, Strict


class LabelsRequest(Strict):
    """More labels for a probe, on items that are embedded already."""

    archive: str = Field(examples=["galaxies-val"], description="name of an embedding table, see GET /v1/archives")
    labels: list[LabelledId] = Field(
        min_length=1, max_length=100_000, description="an item that was labelled before gets the new label"
    )
    folds: int = Field(default=5, ge=2, le=20, description="folds of the group-aware cross-validation")


class UncertainItem(PredictedItem):
    """An item to label next, with what the probe says of it."""

    group: str = Field(description="the table's pseudonym of its patient, slide case or field")
    distance: float = Field(description="to the nearest labelled or listed item, of unit vectors: 0 .. 2")


class Uncertain(BaseModel):
    """Items whose labels would teach the probe most, the first one first."""

    probe: str
    archive: str
    items: list[UncertainItem]
