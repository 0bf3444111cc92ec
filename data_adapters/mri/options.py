"""What a lab may set for its MRI archive."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_adapters.base import AdapterOptions

Plane = Literal["axial", "coronal", "sagittal", "acquired"]
VolumeChoice = Literal["mean", "first"] | Annotated[int, Field(ge=0)]


class MRIOptions(AdapterOptions):
    """Options of the MRI adapter; saved with the encoder."""

    channels: Literal[1, 3] = Field(default=1, description="1 slice, or 3 neighbouring slices as channels")
    plane: Plane = Field(
        default="axial",
        description="how volumes are sliced; 'acquired' is across the largest voxel spacing (2-D acquisitions)",
    )
    volume: VolumeChoice | None = Field(
        default=None, description="which volume of a 4-D file: mean, first or an index; unset refuses 4-D files"
    )
    flip: bool = Field(default=True, description="mirror left and right; switch off when the side is what you predict")
    slab_mm: float = Field(default=6.0, ge=0, description="views take their slice within this distance of the centre")
    slices: int = Field(default=9, ge=1, description="slices of a volume that an embedding is pooled from")
    modalities: tuple[str, ...] = Field(default=("MR",), description="DICOM modalities that are read")
    thick: Literal["refuse", "resample"] = Field(
        default="refuse",
        description="a plane that cuts across thick slices (pixels more than 3 times as long as wide): refuse, or "
        "interpolate them to squares",
    )
    derived: bool = Field(
        default=False, description="read DICOM parameter maps, projections, reformats, and phase images too"
    )
    secondary_captures: bool = Field(default=False, description="read DICOM secondary captures (screenshots) too")
    burned_in: bool = Field(default=False, description="read DICOM images that say text is burned into them too")
    sequences: tuple[str, ...] = Field(
        default=(), description="contrasts of one session that belong together, such as T1w, T2w, FLAIR"
    )
    combine: Literal["channels", "views"] = Field(
        default="channels",
        description="sequences as channels of one image (one grid required), or each view from one of them",
    )
    sequence_patterns: dict[str, str] = Field(
        default_factory=dict,
        description="sequence -> regular expression found in its file names or DICOM series descriptions",
    )
    sequence_dropout: float = Field(
        default=0.2, ge=0, lt=1, description="chance that a training view does without a sequence; one always stays"
    )

    @property
    def image_channels(self) -> int:
        """Channels of what the encoder receives."""
        return len(self.sequences) if self.sequences and self.combine == "channels" else self.channels

    @model_validator(mode="after")
    def _sequences_make_sense(self) -> "MRIOptions":
        if len({name.casefold() for name in self.sequences}) != len(self.sequences) or "" in self.sequences:
            raise ValueError("sequences must be different, non-empty names")
        unknown = sorted(set(self.sequence_patterns) - set(self.sequences))
        if unknown:
            raise ValueError(f"sequence_patterns names {', '.join(unknown)}, which sequences does not list")
        for name, pattern in self.sequence_patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"the pattern of {name} is no regular expression ({error})") from error
        if not self.sequences:
            fields = type(self).model_fields
            idle = [name for name in ("combine", "sequence_dropout") if getattr(self, name) != fields[name].default]
            if idle:
                raise ValueError(f"{' and '.join(idle)} without sequences: list them in the option sequences")
        if self.sequences and self.plane == "acquired":
            raise ValueError("sequences need one plane for all: set plane to axial, coronal or sagittal")
        if self.sequences and self.combine == "channels" and self.channels == 3:
            raise ValueError("channels=3 (neighbouring slices) cannot be had together with sequences as channels")
        return self
