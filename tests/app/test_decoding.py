"""Foreign files are read apart: what a bomb, a crash or a slow reader costs, and what comes back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.embedding import Embedding, Result
from app.items import Field, Source, sources
from app.library import Library
from app.settings import Settings
from app.uploads import Upload
from tests.app.growth import Growth
from tests.data.bombs import Bomb, bombs

MIB = 1 << 20


class Reader:
    """The way of a file through the service without HTTP."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.library, self.embedding = Library(settings), Embedding(settings)
        self.embedding.sandbox.warm()

    def results(self, modality: str, path: Path) -> list[Result]:
        _, encoder, batcher = self.library.encoder(modality)
        upload = Upload(0, path, path.stat().st_size)
        found: list[Source] = sources(
            encoder.adapter, [upload], Field(), settings=self.settings, sandbox=self.embedding.sandbox
        )
        return list(self.embedding.run(encoder.adapter, batcher, found))

    def close(self) -> None:
        self.embedding.close()
        self.library.close()


@pytest.fixture(scope="module")
def reader(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """With the limits that a service has when nobody sets them."""
    reader = Reader(Settings(runs_dir=runs, data_dir=tmp_path_factory.mktemp("reader"), threads=1))
    yield reader
    reader.close()


@pytest.mark.parametrize("bomb", bombs(), ids=lambda bomb: bomb.name.split(".")[0])
def test_bomb(reader: Reader, bomb: Bomb, tmp_path: Path) -> None:
    path = tmp_path / bomb.name
    path.write_bytes(bomb.make())
    with Growth() as growth:
        results = reader.results(bomb.modality, path)
    assert results
    for result in results:
        assert result.problem is not None and result.problem.status == 422, bomb.name
        assert result.problem.remedy
        assert str(tmp_path) not in result.problem.model_dump_json()
    assert growth.bytes < 512 * MIB
