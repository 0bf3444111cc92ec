"""What a lab may set for its volumes in 3-D mode."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from data_adapters.mri.options import MRIOptions


class MRI3DOptions(MRIOptions):
    """Options of the 3-D adapter: those of `mri` about files, patients and sequences, and the grid.

    What speaks of slices (plane, slab, channels) has one possible value here, so that setting it is an error and not
    ignored; it is not saved with the encoder.
    """

    INSTEAD: ClassVar[dict[str, str]] = {
        "plane": "a cube holds every plane; the modality mri shows slices",
        "channels": "the option sequences makes channels; neighbouring slices are channels in the modality mri",
        "slab_mm": "a view is a crop of the whole volume; the modality mri has slabs",
        "slices": "an embedding sees the whole volume; the options global_size and spacing_mm say how finely",
        "thick": "the option max_slice_mm decides about thick slices",
    }

    global_size: int = Field(default=96, ge=16, description="side of a global view and of embedding, voxels")
    local_size: int = Field(default=48, ge=16, description="side of a local view, voxels")
    spacing_mm: float = Field(
        default=1.0, ge=0.01, le=10, description="isotropic voxel size that volumes are resampled to before cropping"
    )
    max_slice_mm: float = Field(
        default=4.0, gt=0, description="refuse volumes with a voxel side above this: what lies between is not known"
    )
    plane: Literal["axial"] = Field(default="axial", exclude=True, description="only in 2.5-D")
    channels: Literal[1] = Field(default=1, exclude=True, description="only in 2.5-D")
    slab_mm: Literal[0] = Field(default=0, exclude=True, description="only in 2.5-D")
    slices: Literal[1] = Field(default=1, exclude=True, description="only in 2.5-D")
    thick: Literal["resample"] = Field(
        default="resample", exclude=True, description="only in 2.5-D; here max_slice_mm decides"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_slices(cls, given: Any) -> Any:
        wrong = [name for name in cls.INSTEAD if name in given and given[name] != cls.model_fields[name].default]
        if wrong:
            raise ValueError("; ".join(f"{name} is not available in mri3d: {cls.INSTEAD[name]}" for name in wrong))
        return given
