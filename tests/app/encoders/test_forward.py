import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.encoders.inference import ServedEncoder, choose_device
from app.encoders.library import Library
from data_adapters.errors import UserError
from lejepa_med.models.folder import LoadedEncoder, Precision, load_encoder, record_precision
from tests.app.helpers import eventually


@pytest.fixture
def served(runs: Path) -> Callable[..., ServedEncoder]:
    def make(loaded: LoadedEncoder | None = None, **settings: object) -> ServedEncoder:
        given = Settings(runs_dir=runs, threads=1, **settings)  # type: ignore[arg-type]
        return ServedEncoder(loaded or load_encoder(runs / "images" / "encoder"), given)

    return make


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_service_computes_as_the_library_in_the_recorded_precision(
    served: Callable[..., ServedEncoder], runs: Path, tmp_path: Path, precision: Precision
) -> None:
    items = [torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in (1, 3, 2)]
    exact = load_encoder(runs / "images").embed(items)
    shutil.copytree(runs / "images" / "encoder", tmp_path / "encoder")
    loaded = load_encoder(record_precision(tmp_path, precision))
    expected = loaded.embed(items)
    parts = served(loaded, batch_images=2).embed(items)
    assert [part.shape for part in parts] == [(1, 512), (3, 512), (2, 512)]
    assert parts[0].dtype == np.float32
    # bfloat16 has 8 bits: layouts and batches round differently, each time by some tenths of a percent
    near = {"rtol": 0, "atol": 1e-5} if precision == "float32" else {"rtol": 0.05, "atol": 0.05 * np.abs(exact).max()}
    np.testing.assert_allclose([part.mean(axis=0) for part in parts], expected, **near)
    distance = np.linalg.norm(expected - exact) / np.linalg.norm(exact)
    assert distance == 0 if precision == "float32" else 1e-5 < distance < 0.03


def test_an_operator_who_asks_the_service_for_less_is_told_where_to_say_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEJEPA_PRECISION", "float32")
    Settings(runs_dir=runs)
    monkeypatch.setenv("LEJEPA_PRECISION", "bfloat16")
    with pytest.raises(UserError, match="lejepa-med precision RUN bfloat16"):
        Settings(runs_dir=runs)


def test_warm_up_covers_the_common_sizes_up_to_the_largest_batch(served: Callable[..., ServedEncoder]) -> None:
    encoder = served(batch_images=16)
    items = list(encoder.warm_up_items())
    assert [len(item) for item in items] == [1, 8, 16]
    assert encoder.embed(items[:1])[0].shape == (1, 512)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (choose_device("auto"), choose_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(UserError, match="0 GPUs"):
        choose_device("cuda:1")


def test_ready_only_after_the_warm_up_but_alive_before(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    passes: list[int] = []
    embed = ServedEncoder.embed

    def held(self: ServedEncoder, items: list[torch.Tensor]) -> list[np.ndarray]:
        assert gate.wait(10)
        passes.append(sum(len(item) for item in items))
        return embed(self, items)

    eventually(lambda: client.get("/readyz").status_code == 200, seconds=120)
    monkeypatch.setattr(ServedEncoder, "embed", held)
    library = Library(settings.model_copy(update={"loaded_encoders": 1, "batch_images": 8}))
    monkeypatch.setattr(client.app.state.service, "library", library)  # type: ignore[attr-defined]
    library.start_warm_up(lambda: None)
    assert client.get("/healthz").status_code == 200
    early = client.get("/readyz")
    assert (early.status_code, early.json()["warm"], early.json()["store"]) == (503, False, True)
    gate.set()
    eventually(lambda: client.get("/readyz").status_code == 200)
    assert passes == [1, 8]
    library.close()
