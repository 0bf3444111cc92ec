"""One condition on a column of an embedding table, as requests and the command line give it; without Arrow."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, StringConstraints, model_validator

Text = Annotated[StrictStr, StringConstraints(max_length=1000)]
LEAST, MOST = -(2**63), 2**63 - 1  # catalogues of the sky have ids of 64 bits
Whole = Annotated[StrictInt, Field(ge=LEAST, le=MOST)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # strict: a text is no number, a whole one is
Value = StrictBool | Whole | Number | Text


class Condition(BaseModel):
    """One column and what its value must be; an item must meet every condition of a request."""

    model_config = ConfigDict(extra="forbid")

    column: str = Field(max_length=200, examples=["label"], description="group, label, or a column of the table")
    equals: Value | None = Field(default=None, examples=["spiral"])
    any_of: list[Value] | None = Field(default=None, alias="in", min_length=1, max_length=1000)
    none_of: list[Value] | None = Field(
        default=None, alias="not_in", min_length=1, max_length=1000, description="an item without a value meets it"
    )
    min: Whole | Number | None = Field(default=None, description="least value, itself included")
    max: Whole | Number | None = Field(default=None, description="largest value, itself included")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [self.equals is not None, self.any_of is not None, self.none_of is not None, self.is_range]
        if sum(kinds) != 1:
            raise ValueError("give one of: equals, in, not_in, or a range of min and max")
        return self

    @property
    def is_range(self) -> bool:
        """Whether it is a range of numbers."""
        return self.min is not None or self.max is not None

    @property
    def values(self) -> list[bool | int | float | str]:
        """Every value it names."""
        if self.equals is not None:
            return [self.equals]
        if self.is_range:
            return [value for value in (self.min, self.max) if value is not None]
        return [*(self.any_of or ()), *(self.none_of or ())]
