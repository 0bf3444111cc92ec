"""MRI: volumes, DICOM series and exported slices as 2-D views of neighbouring slices."""
