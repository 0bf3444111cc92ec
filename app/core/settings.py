"""Settings of the service: arguments of `lejepa-med serve`, or environment variables with the prefix LEJEPA_."""

import ipaddress
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.datadir import temporary
from data_adapters.errors import UserError
from data_adapters.machine import usable_cores

MOST_CORES = 8  # taken without being asked


class Settings(BaseSettings):
    """Everything that an operator can set. `data_dir` holds all state; `runs_dir` is only read."""

    model_config = SettingsConfigDict(env_prefix="LEJEPA_", frozen=True, extra="forbid")

    runs_dir: Path = Field(default=Path("runs"), description="run folders: encoders and embedding tables, only read")
    data_dir: Path | None = Field(
        default=None, description="all state of the service; by default 'lejepa-data' beside runs_dir"
    )
    archives_dir: Path | None = Field(
        default=None, description="folder below which clients may name archives to be embedded; only read"
    )
    thumbnails: bool = Field(
        default=True, description="keep small pictures of what the encoder saw beside the tables that the service makes"
    )
    keep_uploads_days: float | None = Field(
        default=None, gt=0, description="days after which an upload is removed; by default never"
    )
    database_url: SecretStr | None = Field(
        default=None, description="postgresql://USER:PASSWORD@HOST/DATABASE; by default SQLite in the data directory"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    auth: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="whether requests need an API key; auto: once one was made, and on an address that is not loopback",
    )
    allow_unauthenticated: bool = Field(
        default=False, description="allow a non-loopback address although nobody is asked for a key"
    )
    allowed_hosts: str = Field(
        default="",
        description="names in the Host header, separated by commas; by default any where keys are asked for, else "
        "those of loopback",
    )
    metrics_open: bool = Field(default=False, description="answer GET /metrics without a key")
    requests_per_minute: int = Field(
        default=6000, ge=0, description="requests of one key, or without keys of one other machine; 0: no limit"
    )
    items_per_minute: int = Field(
        default=0, ge=0, description="items of one key, or of one other machine, that are embedded; 0: no limit"
    )
    jobs_per_key: int = Field(default=100, ge=1, description="unfinished jobs of one key, or of all without a key")
    failures_per_minute: int = Field(
        default=30, ge=1, description="refused keys of one address before the answer is 429; right keys still pass"
    )
    audit_days: int = Field(default=730, ge=1, description="days that a line of the audit trail is kept")
    allow_code: bool = Field(
        default=False, description="run Python files that lie in runs_dir: backbones and adapters of somebody's own"
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
        description="where encoders run: cpu, cuda, cuda:1; auto takes the GPU where there is one",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of torch, and processes that decode; by default the usable cores, at most 8, and "
        "fewer threads while other processes need the cores",
    )
    loaded_encoders: int = Field(default=2, ge=1, description="encoders kept in memory; the least recently used goes")
    queue_items: int = Field(default=256, ge=1, description="items that wait for an encoder before the answer is 503")
    queue_bytes: int = Field(default=1 << 30, ge=1, description="bytes of decoded pixels that wait for an encoder")
    batch_images: int = Field(default=64, ge=1, description="slices, tiles or images in one forward pass")
    job_workers: int = Field(
        default=1, ge=0, description="jobs that run at the same time in each process; 0: only in worker processes"
    )
    job_retries: int = Field(
        default=6, ge=0, le=12, description="how often a job's step is tried again, after 1, 2, 4, ... seconds"
    )
    max_upload_bytes: int = Field(default=512 << 20, ge=1, description="bytes of one request with files")
    max_json_bytes: int = Field(default=16 << 20, ge=1, description="bytes of one JSON body or form field")
    max_files: int = Field(default=1000, ge=1, description="files of one request")
    max_unzipped_bytes: int = Field(default=2 << 30, ge=1, description="bytes that the zip files of a request may hold")
    max_zip_entries: int = Field(default=10_000, ge=1, description="entries of one zip file")
    max_pixels: int = Field(default=1 << 28, ge=1, description="pixels or voxels of one item that is decoded whole")
    max_tiles: int = Field(default=4096, ge=1, description="slices, tiles or pages of one item")
    max_items: int = Field(default=10_000, ge=1, description="items of one file, such as rows of an HDF5 table")
    max_decode_bytes: int = Field(default=3 << 30, ge=1 << 26, description="memory that decoding one item may take")
    decode_seconds: float = Field(default=30, gt=0, description="seconds without progress that reading a file may take")
    upload_idle_seconds: float = Field(
        default=30, gt=0, description="seconds in which at least 1 KiB a second of a body must arrive"
    )
    search_index: Literal["auto", "exact", "pgvector", "lancedb"] = Field(
        default="auto",
        description="similarity search: exact looks at every vector; auto does so up to 500,000 vectors, and beyond "
        "takes pgvector where the database is PostgreSQL, else LanceDB where it is installed, else exact",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")
    log_format: Literal["text", "json"] | None = Field(
        default=None, description="text, or json with one object a line; by default text on a terminal, json elsewhere"
    )
    drain_seconds: float = Field(
        default=20, ge=0, description="how long requests in flight may take to end after SIGTERM; compose waits 30 s"
    )

    @model_validator(mode="after")
    def _precision_is_the_encoder_s(self) -> "Settings":
        wanted = os.environ.get("LEJEPA_PRECISION", "float32")
        if wanted not in ("float32", "auto"):
            raise UserError(
                f"LEJEPA_PRECISION is '{wanted}', but the precision of vectors is recorded with each encoder.",
                remedy="Start without LEJEPA_PRECISION. For less than float32, run before: "
                "lejepa-med precision RUN bfloat16",
            )
        return self

    @property
    def data(self) -> Path:
        """The data directory, absolute."""
        return (self.data_dir or self.runs_dir.resolve().parent / "lejepa-data").resolve()

    @property
    def cores(self) -> int:
        """`threads`, or as many as the process may use; the limit of torch's threads and of decoding processes."""
        return self.threads or min(MOST_CORES, usable_cores())

    def temporary(self, name: str) -> Path:
        """A new folder for what this process receives; another process removes it when this one is dead."""
        return temporary(self.data, name)

    @property
    def asks_nobody(self) -> bool:
        """Whether requests pass without a key for as long as none was made."""
        return self.auth == "off" or (self.auth == "auto" and (is_loopback(self.host) or self.allow_unauthenticated))

    @property
    def hosts(self) -> frozenset[str]:
        """`allowed_hosts` as names in lower case."""
        return frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. An unknown name counts as public."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
