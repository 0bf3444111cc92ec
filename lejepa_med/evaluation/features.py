"""Archive records -> embeddings: the one path for training-time evaluation, `embed`, probes and the report."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_adapters.base import Adapter, Record, rejected
from lejepa_med.data.loader import quiet_worker
from lejepa_med.errors import BadFileError
from lejepa_med.models.folder import LoadedEncoder
from lejepa_med.threads import Threads


@dataclass(frozen=True)
class Feature:
    """The embedding of `records[index]`, (dim,) float32, or why there is none."""

    index: int
    vector: np.ndarray | None
    error: str = ""


class _Prepared(Dataset[tuple[int, Tensor | None, str]]):
    """Runs the adapter's `prepare` in loader workers."""

    def __init__(self, adapter: Adapter, records: Sequence[Record]) -> None:
        self.adapter, self.records = adapter, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            return index, self.adapter.prepare(self.records[index]), ""
        except BadFileError as error:
            return index, None, error.cause
        except (OSError, ValueError, EOFError, RuntimeError) as error:
            return index, None, rejected(self.records[index].uri, error).reason


def embed_records(
    encoder: LoadedEncoder,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    workers: int = 0,
    threads: Threads | None = None,
) -> Iterator[Feature]:
    """Embed records in order; one that cannot be read yields a Feature with an error and the rest goes on.

    Args:
        encoder: with its own adapter, so the pixels are those that it was trained for.
        records: of any archive of the same modality.
        batch_size: slices or tiles in one forward pass.
        workers: processes that read and prepare.
        threads: an open choice of CPU threads that goes on over several calls; None: one for this call.
    """
    loader = DataLoader(
        _Prepared(encoder.adapter, records),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=quiet_worker if workers else None,
    )
    waiting: list[tuple[int, Tensor | None, str]] = []
    size = 0
    with nullcontext(threads) if threads is not None else Threads(active=encoder.device == "cpu") as pace:
        for entry in loader:
            waiting.append(entry)
            size += 0 if entry[1] is None else len(entry[1])
            if size >= batch_size:
                yield from _flush(encoder, waiting, batch_size)
                pace.step(size)
                waiting, size = [], 0
        yield from _flush(encoder, waiting, batch_size)


def _flush(
    encoder: LoadedEncoder, waiting: Sequence[tuple[int, Tensor | None, str]], batch_size: int
) -> Iterator[Feature]:
    vectors = iter(encoder.embed([t for _, t, _ in waiting if t is not None], batch_size=batch_size))
    for index, tensor, reason in waiting:
        yield Feature(index, None if tensor is None else next(vectors), reason)
