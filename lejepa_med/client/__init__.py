"""Typed client of the service; it needs httpx and nothing else of this package, no torch above all.

from lejepa_med.client import Client

with Client("http://127.0.0.1:8000", key="lj_...") as service:
for item in service.embed_many(Path("night-3").glob("*.fits"), encoder="galaxies"):
print(item.file_index, item.vector)
job = service.train_probe(files, labels, encoder="galaxies")
job = service.wait(job, progress=lambda job: print(f"{job.progress:.0%}"))
for found in service.predict_files(job.id, new_files):
print(found.label, found.probabilities, found.novelty)
"""

from lejepa_med.client.api import Client
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
from lejepa_med.client.models import (
    Archive,
    ArchiveDetail,
    ArchiveItem,
    EmbeddedItem,
    Embeddings,
    Encoder,
    EncoderDetail,
    Job,
    Problem,
    Upload,
    UploadDetail,
    UploadItem,
)
from lejepa_med.client.models_probes import Application, Hit, Neighbours, Prediction, Probe, ProbeVersion, UncertainItem

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
    "JobFailedError",
    "Neighbours",
    "NotFoundError",
    "Prediction",
    "Probe",
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
