"""Archive records -> embeddings: the one path for training-time evaluation, `embed`, probes and the report."""

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_adapters.base import Adapter, Record, rejected
from lejepa_med.data.loader import Ahead, Parcel
from lejepa_med.errors import BadFileError, is_shortage
from lejepa_med.models.folder import LoadedEncoder
from lejepa_med.threads import Threads


@dataclass(frozen=True)
class Feature:
    """The embedding of `records[index]`, (dim,) float32, or why there is none."""

    index: int
    vector: np.ndarray | None
    error: str = ""


def _prepare(adapter: Adapter, records: Sequence[Record], index: int) -> Parcel:
    try:
        return Parcel("", [adapter.prepare(records[index])])
    except BadFileError as error:
        return Parcel(error.cause)
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        if is_shortage(error):
            raise  # of memory or open files, say, which is no fault of this file
        return Parcel(rejected(records[index].uri, error).reason)


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
    loader = Ahead(
        partial(_prepare, encoder.adapter, records),
        range(len(records)),
        build=lambda parcel: parcel,
        workers=workers,
        fewer="--workers or a smaller --batch-size",
    )
    waiting: list[Parcel] = []
    size = first = 0
    open_choice = nullcontext(threads) if threads is not None else Threads(active=encoder.device == "cpu")
    with closing(loader), open_choice as pace:
        for parcel in loader:
            waiting.append(parcel)
            size += sum(map(len, parcel.tensors))
            if size >= batch_size:
                yield from _flush(encoder, waiting, first, batch_size)
                pace.step(size)
                first += len(waiting)
                waiting, size = [], 0
        yield from _flush(encoder, waiting, first, batch_size)


def _flush(encoder: LoadedEncoder, waiting: Sequence[Parcel], first: int, batch_size: int) -> Iterator[Feature]:
    vectors = iter(encoder.embed([tensor for parcel in waiting for tensor in parcel.tensors], batch_size=batch_size))
    for index, parcel in enumerate(waiting, first):
        yield Feature(index, next(vectors) if parcel.tensors else None, parcel.facts)
