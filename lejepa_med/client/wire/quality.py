"""Quality reports of an archive: confounders, and images to look at."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from lejepa_med.client.wire.common import NEWER, Answer, Request

Name = Annotated[str, Field(max_length=300)]


class CheckRequest(Request):
    """Which columns of an archive are measured beside which labels."""

    probe: Name | None = Field(default=None, description="whose labels are used; by default those of the catalogue")
    columns: list[Name] | None = Field(
        default=None, min_length=1, max_length=100, examples=[["scanner"]], description="by default all"
    )
    leave_out: Name | None = Field(
        default=None, examples=["site"], description="a column; the report gives the score on values it has not seen"
    )


class OutliersRequest(Request):
    """What is looked for in an archive."""

    probe: Name | None = Field(default=None, description="classification probe whose labels are doubted")
    share: float = Field(default=0.01, gt=0, le=1, description="share of the images that are listed as odd")


class QualitySummary(Answer):
    """What a report found, in sentences."""

    id: str
    kind: Annotated[Literal["check", "outliers"], NEWER]
    archive: str
    fingerprint: str = Field(description="fingerprint of the encoder")
    created: datetime
    summary: list[str] = Field(examples=[["No confounder found in 3 columns."]], description="most serious first")


class Quality(QualitySummary):
    """A report in full."""

    report: dict[str, Any] = Field(
        repr=False,
        description="check: `label`, `columns` (state, prediction, association, robustness, sentence), `confounded` "
        "and `leave_out`, as check.json has them. outliers: `counts` by kind, `notes`, and `findings` (kind, id, rank, "
        "score, reason, group, other, other_group, label, suggested), the most suspicious of each kind first",
    )


class Qualities(Answer):
    """Reports of an archive, newest first."""

    qualities: list[QualitySummary]
    next: str | None = Field(default=None, description="link to the next page")
