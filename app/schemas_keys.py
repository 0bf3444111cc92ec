"""What keys and the audit trail look like over the wire."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.schemas import Name, Strict


class KeyRequest(Strict):
    """Make an API key."""

    name: Name = Field(examples=["pacs-gateway"], description="whose key it is")
    scopes: list[Literal["embed", "probe", "admin"]] = Field(
        min_length=1, max_length=3, examples=[["embed"]], description="admin includes the others"
    )
    expires_days: float | None = Field(default=None, gt=0, le=36_500, examples=[365], description="none: never")


class Key(BaseModel):
    """An API key without its secret."""

    id: str = Field(examples=["5f0c7e1b9a3d4c2e"])
    name: str
    scopes: list[Literal["embed", "probe", "admin"]]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    last_used: datetime | None = Field(default=None, description="to a minute")


class NewKey(Key):
    """A new API key. `key` is shown this once."""

    key: str = Field(examples=["lj_5f0c7e1b9a3d4c2e_..."])


class Keys(BaseModel):
    """All API keys, oldest first."""

    keys: list[Key]


class AuditLine(BaseModel):
    """One request that changed something or was refused, or one command of the operator (status 0)."""

    id: int
    at: datetime
    key_id: str | None = Field(description="none where nobody was asked for a key, and where no key was accepted")
    action: str = Field(examples=["DELETE /v1/jobs/{job_id}"])
    target: str | None = Field(description="id of what was made, changed or removed")
    status: int = Field(examples=[200])
    request_id: str | None


class Audit(BaseModel):
    """A page of the audit trail, newest first."""

    lines: list[AuditLine]
    next: str | None = Field(default=None, description="link to the next page")
