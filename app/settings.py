"""Settings of the service: arguments of `lejepa-med serve`, or environment variables with the prefix LEJEPA_."""

import ipaddress
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.executor import temporary
from data_adapters.errors import UserError


class Settings(BaseSettings):
    """Everything that an operator can set. `data_dir` holds all state; `runs_dir` is only read."""

    model_config = SettingsConfigDict(env_prefix="LEJEPA_", frozen=True, extra="forbid")

    runs_dir: Path = Field(default=Path("runs"), description="run folders: encoders and embedding tables, only read")
    data_dir: Path | None = Field(
        default=None, description="all state of the service; by default 'lejepa-data' beside runs_dir"
    )
    database_url: SecretStr | None = Field(
        default=None, description="postgresql://USER:PASSWORD@HOST/DATABASE; by default SQLite in the data directory"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allow_unauthenticated: bool = Field(
        default=False, description="allow a non-loopback address although the service has no API keys yet"
    )
    device: str = Field(default="cpu", description="torch device of the encoders: cpu, cuda, cuda:1")
    threads: int = Field(
        default_factory=lambda: max(1, min(8, os.cpu_count() or 1)),
        ge=1,
        description="CPU threads of torch, and of decoding; the default is the number of cores, at most 8",
    )
    loaded_encoders: int = Field(default=2, ge=1, description="encoders kept in memory; the least recently used goes")
    queue_items: int = Field(default=256, ge=1, description="items that wait for an encoder before the answer is 503")
    batch_images: int = Field(default=64, ge=1, description="slices, tiles or images in one forward pass")
    job_workers: int = Field(
        default=1, ge=0, description="jobs that run at the same time in each process; 0: only in worker processes"
    )
    job_retries: int = Field(
        default=6, ge=0, le=12, description="how often a job's step is tried again, after 1, 2, 4, ... seconds"
    )
    max_upload_bytes: int = Field(default=512 << 20, ge=1, description="bytes of one request with files")
    max_json_bytes: int = Field(default=16 << 20, ge=1, description="bytes of one JSON body or form field")
    stall_seconds: float = Field(default=60.0, gt=0, description="after so long without a byte a request is ended")
    max_files: int = Field(default=1000, ge=1, description="files of one request")
    max_unzipped_bytes: int = Field(default=2 << 30, ge=1, description="bytes that the zip files of a request may hold")
    max_zip_entries: int = Field(default=10_000, ge=1, description="entries of one zip file")
    max_pixels: int = Field(default=1 << 28, ge=1, description="pixels or voxels of one item that is decoded whole")
    max_tiles: int = Field(default=4096, ge=1, description="slices or tiles of one item")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")

    @property
    def data(self) -> Path:
        """The data directory, absolute."""
        return (self.data_dir or self.runs_dir.resolve().parent / "lejepa-data").resolve()

    def temporary(self, name: str) -> Path:
        """A new folder for what this process receives; another process removes it when this one is dead."""
        return temporary(self.data, name)

    def check_bind(self) -> None:
        """Refuse to listen to other machines as long as nobody is asked who they are.

        Raises:
            UserError: a non-loopback host without `allow_unauthenticated`.
        """
        if is_loopback(self.host) or self.allow_unauthenticated:
            return
        raise UserError(
            f"The service has no API keys yet, so it does not listen on '{self.host}', which other machines may reach.",
            remedy="Use --host 127.0.0.1 behind an authenticating proxy, or, on a network that you trust, "
            "--allow-unauthenticated (LEJEPA_ALLOW_UNAUTHENTICATED=1).",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. An unknown name counts as public."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
