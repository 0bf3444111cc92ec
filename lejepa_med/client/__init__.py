"""Typed client of the service; it needs httpx and pydantic, and nothing else of this package, no torch above all.

```python
from pathlib import Path

from lejepa_med.client import Client

files = sorted(Path("night-3").glob("*.fits"))
labels = ["spiral" if "spiral" in file.name else "elliptical" for file in files]
with Client("http://127.0.0.1:8000", key=None) as service:
    for item in service.embed_many(files, encoder="galaxies"):
        print(item.file_index, item.vector or item.error)
    job = service.train_probe(files, labels, encoder="galaxies")
    job = service.wait(job, progress=lambda job: print(f"{job.progress:.0%}"))
    for found in service.predict_files(job.id, files[:3]):
        print(found.label, found.probabilities, found.novelty)
```
"""

from lejepa_med.client.client import Client
from lejepa_med.client.errors import (
    BusyError,
    ClientError,
    ConflictError,
    DeniedError,
    InvalidError,
    JobFailedError,
    NotFoundError,
    ServerFaultError,
    ServiceError,
    TooLargeError,
    UnreachableError,
)
from lejepa_med.client.files import CautionWarning
from lejepa_med.client.wire.common import Job, JobDetail, Problem
from lejepa_med.client.wire.images import (
    Archive,
    ArchiveDetail,
    EmbeddedItem,
    Embeddings,
    Encoder,
    EncoderDetail,
    Upload,
    UploadDetail,
    UploadItem,
)
from lejepa_med.client.wire.images import ArchiveId as ArchiveItem
from lejepa_med.client.wire.labels import LabelSet, LabelSetDetail, NextItems
from lejepa_med.client.wire.probes import Application, Hit, Probe, ProbeDetail, ProbeVersion, UncertainItem
from lejepa_med.client.wire.probes import Neighbourhood as Neighbours
from lejepa_med.client.wire.probes import PredictedItem as Prediction

__all__ = [
    "Application",
    "Archive",
    "ArchiveDetail",
    "ArchiveItem",
    "BusyError",
    "CautionWarning",
    "Client",
    "ClientError",
    "ConflictError",
    "DeniedError",
    "EmbeddedItem",
    "Embeddings",
    "Encoder",
    "EncoderDetail",
    "Hit",
    "InvalidError",
    "Job",
    "JobDetail",
    "JobFailedError",
    "LabelSet",
    "LabelSetDetail",
    "Neighbours",
    "NextItems",
    "NotFoundError",
    "Prediction",
    "Probe",
    "ProbeDetail",
    "ProbeVersion",
    "Problem",
    "ServerFaultError",
    "ServiceError",
    "TooLargeError",
    "UncertainItem",
    "UnreachableError",
    "Upload",
    "UploadDetail",
    "UploadItem",
]
