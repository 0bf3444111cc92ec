"""What a lab may set for its MRI archive."""

from typing import Annotated, Literal

from pydantic import Field

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
    group_by: Literal["auto", "folder", "file"] = Field(
        default="auto",
        description="what one patient is: auto (BIDS sub-, DICOM PatientID, folder, file), the folder, or the file",
    )
