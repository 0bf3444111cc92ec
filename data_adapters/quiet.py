"""Reading libraries are not heard: their warnings and log records quote file names and header values."""

import logging
import os
import sys
import warnings

# Not astropy, whose logger must be made by astropy itself; it speaks through Python warnings.
READERS = ("pydicom", "highdicom", "nibabel", "nibabel.global", "tifffile", "PIL", "h5py", "openslide")


def quiet_readers() -> None:
    """Silence Python warnings and the readers' loggers, in this process and in those that it starts.

    What a warning says of a file, the adapters judge themselves and put into rejected.csv. `python -W default -m
    lejepa_med.cli ...` brings the warnings back, on a terminal that nobody records.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for name in READERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
