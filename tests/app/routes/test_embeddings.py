import io
import json
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from app.api.formats import ARROW, PARQUET
from app.core.settings import Settings
from data_adapters.base import Record
from lejepa_med.models.folder import load_encoder
from tests.app.helpers import files, png


def direct(runs: Path, modality: str, path: Path, **meta: object) -> np.ndarray:
    """The vectors of the items in `path` by the library alone."""
    encoder = load_encoder(runs / modality / "encoder")
    if meta:
        records = [Record(uri=str(path), group="g", meta=meta)]
    else:
        records = [found for found in encoder.adapter.scan(path) if isinstance(found, Record)]
    assert records
    return encoder.embed([encoder.adapter.prepare(record) for record in records])


def sent(client: TestClient, modality: str, content: bytes, name: str, **fields: str) -> np.ndarray:
    """The same over HTTP, from both answers."""
    data = {"encoder": modality, **fields}
    answer = client.post("/v1/embeddings", files=files(content, name=name), data=data)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    vectors = np.array([item["vector"] for item in body["items"]], np.float32)
    binary = client.post(
        "/v1/embeddings", files=files(content, name=name), data=data, headers={"Accept": "application/x-npy"}
    )
    assert binary.headers["x-encoder-fingerprint"] == body["fingerprint"]
    loaded = np.load(io.BytesIO(binary.content))
    assert loaded.dtype == np.float32
    # 1e-5 and not 0: the two requests may fall into different batches.
    np.testing.assert_allclose(loaded, vectors, atol=1e-5)
    assert vectors.shape[1] == body["dim"] == 512
    return vectors


def test_picture(client: TestClient, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    expected = direct(runs, "images", tmp_path / "a.png")
    np.testing.assert_allclose(sent(client, "images", png(3), "a.PNG"), expected, atol=1e-5)


def test_nifti(client: TestClient, runs: Path, tmp_path: Path) -> None:
    from tests.data.mri import phantom, write_nifti

    path = write_nifti(tmp_path / "head.nii.gz", phantom())
    expected = direct(runs, "mri", path)
    np.testing.assert_allclose(sent(client, "mri", path.read_bytes(), "head.nii.gz"), expected, atol=1e-5)


def test_files_as_they_come_from_the_field(client: TestClient, runs: Path, tmp_path: Path) -> None:
    """Uploads go through the same readers: units, gzip by content, no preamble, BLANK of unsigned integers."""
    from astropy.io import fits

    from tests.data.mri import dataset, nifti, phantom

    image = nifti(phantom(), spacing=(1000.0, 1250.0, 2000.0))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    nib.save(nifti(phantom()), tmp_path / "b.nii.gz")
    vectors = sent(client, "mri", (tmp_path / "a.nii").read_bytes(), "head.nii.gz")
    np.testing.assert_allclose(vectors, direct(runs, "mri", tmp_path / "b.nii.gz"), atol=1e-5)
    data = dataset(phantom()[:, :, 10], SOPClassUID=None)
    data.save_as(tmp_path / "slice", implicit_vr=True, little_endian=True)
    vectors = sent(client, "mri", (tmp_path / "slice").read_bytes(), "slice")
    np.testing.assert_allclose(vectors, direct(runs, "mri", tmp_path / "slice"), atol=1e-5)
    counts = (1000 + 50 * np.random.default_rng(0).normal(size=(3, 48, 48))).astype(np.uint16)
    counts[:, 20:28, 20:28] += 2000
    counts[:, :5, :5] = 65535
    fits.PrimaryHDU(counts, fits.Header([("BANDS", "grz")])).writeto(tmp_path / "blank.fits")
    with fits.open(tmp_path / "blank.fits", "update", do_not_scale_image_data=True) as file:
        file[0].header["BLANK"] = 32767
    vectors = sent(client, "galaxy", (tmp_path / "blank.fits").read_bytes(), "a.fits")
    np.testing.assert_allclose(vectors, direct(runs, "galaxy", tmp_path / "blank.fits"), atol=1e-5)


def test_dicom_slice_without_suffix_and_zipped_series(client: TestClient, runs: Path, tmp_path: Path) -> None:
    from tests.data.mri import phantom, write_series

    paths = write_series(tmp_path / "series", phantom())
    one = paths[len(paths) // 2]
    np.testing.assert_allclose(sent(client, "mri", one.read_bytes(), "1.2.840.5"), direct(runs, "mri", one), atol=1e-5)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for path in paths:
            target.write(path, f"Doe^Jane/{path.name}")
        target.writestr("DICOMDIR", b"index")
    vectors = sent(client, "mri", packed.getvalue(), "Jane Doe.zip")
    assert len(vectors) == 1
    np.testing.assert_allclose(vectors, direct(runs, "mri", tmp_path / "series"), atol=1e-5)


def test_slide_region_and_tile(client: TestClient, runs: Path, tmp_path: Path) -> None:
    from tests.data.histology import write_slide, write_tiles

    write_slide(tmp_path / "slide.tif", width=600, height=500, mpp=0.5)
    content = (tmp_path / "slide.tif").read_bytes()
    whole = direct(runs, "histology", tmp_path / "slide.tif")
    np.testing.assert_allclose(sent(client, "histology", content, "s.tif"), whole, atol=1e-5)
    region = direct(runs, "histology", tmp_path / "slide.tif", region=[100, 120, 96, 64])
    found = sent(client, "histology", content, "s.tif", region="100,120,96,64")
    np.testing.assert_allclose(found, region, atol=1e-5)
    assert np.abs(region - whole).max() > 1e-3
    coarse = sent(client, "histology", content, "s.tif", region="100,120,96,64", mpp="0.25")
    assert np.abs(coarse - region).max() > 1e-3, "mpp is heeded"
    tile = write_tiles(tmp_path / "tiles", slides=["a"], per_slide=1)[0]
    np.testing.assert_allclose(
        sent(client, "histology", tile.read_bytes(), "t.png"), direct(runs, "histology", tile), atol=1e-5
    )


def test_fits(client: TestClient, runs: Path, tmp_path: Path) -> None:
    from astropy.io import fits

    flux = np.random.default_rng(1).normal(0.1, 0.05, (3, 48, 48)).astype(np.float32)
    flux[:, 20:28, 20:28] += 2
    path = tmp_path / "cutout.fits"
    fits.PrimaryHDU(flux, fits.Header([("BANDS", "grz"), ("BUNIT", "nanomaggy")])).writeto(path)
    expected = direct(runs, "galaxy", path)
    np.testing.assert_allclose(sent(client, "galaxy", path.read_bytes(), "M31.fits"), expected, atol=1e-5)


def test_hdf5_gives_one_vector_a_row(client: TestClient, runs: Path, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "galaxies.h5"
    flux = np.random.default_rng(2).normal(0.1, 0.05, (3, 48, 48, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["images"] = flux
        file["images"].attrs["bands"] = "grz"
    expected = direct(runs, "galaxy", path)
    assert len(expected) == 3
    np.testing.assert_allclose(sent(client, "galaxy", path.read_bytes(), "g.h5"), expected, atol=1e-5)


def test_a_bad_item_has_its_own_error_beside_good_vectors(client: TestClient) -> None:
    three = files(png(0), b"not a picture", png(1))
    body = client.post("/v1/embeddings", files=three, data={"encoder": "images"}).json()
    assert [item.get("vector") is None for item in body["items"]] == [False, True, False]
    assert [item["file_index"] for item in body["items"]] == [0, 1, 2]
    assert body["items"][1]["error"]["remedy"]
    npy = client.post(
        "/v1/embeddings", files=three, data={"encoder": "images"}, headers={"Accept": "application/x-npy"}
    )
    assert npy.status_code == 422
    assert npy.json()["index"] == 1


@pytest.mark.parametrize(
    ("content", "name", "fields", "status", "kind"),
    [
        (b"", "a.png", {}, 422, "bad-file"),
        (b"%PDF-1.7", "a.pdf", {}, 422, "bad-file"),
        (png()[:200], "a.png", {}, 422, "bad-file"),
        (png(), "a.png", {"encoder": "nobody"}, 404, "not-found"),
        (png(), "a.png", {"encoder": ""}, 422, "not-possible"),  # four encoders: one must be named
        (png(), "a.png", {"region": "1,2,3,4"}, 422, "not-possible"),  # pictures have no regions
        (png(), "a.png", {"encoder": "histology", "region": "1,2,3"}, 422, "invalid-request"),
        (png(), "a.png", {"encoder": "histology", "mpp": "inf"}, 422, "invalid-request"),
        (png(), "a.png", {"encodr": "images"}, 422, "invalid-request"),
    ],
)
def test_refusals(
    client: TestClient, content: bytes, name: str, fields: dict[str, str], status: int, kind: str
) -> None:
    answer = client.post("/v1/embeddings", files=files(content, name=name), data={"encoder": "images", **fields})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:lejepa-med:problem:{kind}"
    assert answer.json()["remedy"]


def test_too_large_by_declared_and_by_counted_bytes(client: TestClient, settings: Settings) -> None:
    big = b"0" * (settings.max_upload_bytes + 1)
    answer = client.post("/v1/embeddings", files=files(big), data={"encoder": "images"})
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:lejepa-med:problem:too-large")

    def stream():  # chunked: no Content-Length
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(settings.max_upload_bytes // 65536 + 2):
            yield b"0" * 65536

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/embeddings", content=stream(), headers=headers)
    assert answer.status_code == 413
    assert list((settings.data / "tmp").iterdir()) == []


def test_too_many_pixels(runs: Path, tmp_path: Path) -> None:
    from app.encoders.library import Library
    from app.uploads.bodies import ReceivedFile
    from app.uploads.embedding import Embedding
    from app.uploads.file_items import Area, request_items

    limited = Settings(runs_dir=runs, data_dir=tmp_path, threads=1, max_pixels=40 * 40 - 1)
    library, embedding = Library(limited), Embedding(limited)
    (tmp_path / "a.png").write_bytes(png())
    _, encoder, batcher = library.encoder("images")
    found = request_items(
        encoder.adapter, [ReceivedFile(0, tmp_path / "a.png", 1)], Area(), settings=limited, sandbox=embedding.sandbox
    )
    (result,) = embedding.run(encoder.adapter, batcher, found)
    assert result.problem is not None and "pixels" in result.problem.detail
    library.close()
    embedding.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\ncut off', 400),
        (b"no boundary at all", 400),
        (b"--b--\r\n", 422),  # well formed, no file
    ],
)
def test_broken_multipart(client: TestClient, settings: Settings, body: bytes, status: int) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/embeddings", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert list((settings.data / "tmp").iterdir()) == []


def test_json_to_the_upload_route(client: TestClient) -> None:
    answer = client.post("/v1/embeddings", json={"files": []})
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:lejepa-med:problem:not-multipart")


def test_a_picture_for_an_encoder_of_flux_is_told_what_the_encoder_wants(client: TestClient) -> None:
    answer = client.post("/v1/embeddings", files=files(png()), data={"encoder": "galaxy"})
    assert answer.status_code == 422
    detail, remedy = answer.json()["detail"], answer.json()["remedy"]
    assert "holds pictures (JPEG, PNG or RGB), but the encoder, or the option kind, is for flux (FITS" in detail
    assert "an encoder that was pretrained on pictures" in remedy and "modality" not in detail + remedy


# --- cautions -------------------------------------------------------------------------------------------------------

UNKNOWN = "tiles have no mpp (um per pixel), and the encoder was trained at 0.5. A tile is resized to 32 pixels"
GIVE = "Give the form field 'mpp' (it holds for all files of the request), so that this is checked"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    from tests.data.histology import write_tiles

    paths = write_tiles(tmp_path_factory.mktemp("tiles"), slides=["a"], per_slide=7)
    return [path.read_bytes() for path in paths]


def cautions(client: TestClient, parts: list[tuple[str, tuple[str, bytes]]], **fields: str) -> list[str]:
    answer = client.post("/v1/embeddings", files=parts, data={"encoder": "histology", **fields})
    assert answer.status_code == 200, answer.text
    found: list[str] = answer.json()["cautions"]
    return found


def test_tiles_without_mpp_are_one_caution_with_count_names_and_remedy(client: TestClient, tiles: list[bytes]) -> None:
    parts = [("files", (f"night {number}/tile.png", tile)) for number, tile in enumerate(tiles)]
    (caution,) = cautions(client, parts)
    assert caution.startswith(f"7 of 7 {UNKNOWN}") and GIVE in caution
    assert caution.endswith(". The first files (by position, from 0): 0, 1, 2, 3, 4"), "names of files are never told"
    (caution,) = cautions(client, parts[:2], keys='["A-17", 18]')
    assert caution.startswith(f"2 of 2 {UNKNOWN}") and caution.endswith(
        "Files (by position, from 0): 0 key 'A-17', 1 key 18"
    )
    (caution,) = cautions(client, parts[:1])
    assert caution.startswith("1 of 1 tiles") and caution.endswith(". Files (by position, from 0): 0")
    (caution,) = cautions(client, [*files(b"no tile"), *parts[:1]])
    assert caution.startswith("1 of 1 tiles") and caution.endswith("Files (by position, from 0): 1")


def test_tiles_in_zips_are_named_as_in_the_zip(client: TestClient, tiles: list[bytes]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        target.writestr("s 1/b.png", tiles[0])
        target.writestr("README.md", b"x")
    (caution,) = cautions(client, files(packed.getvalue(), name="a.zip"))
    assert caution.endswith("Files (by position, from 0): 0 's 1/b.png'")
    (caution,) = cautions(client, [*files(tiles[1], name="x.png"), *files(packed.getvalue(), name="a.zip")])
    assert caution.startswith("2 of 2 tiles") and caution.endswith("Files (by position, from 0): 0, 1 's 1/b.png'")


def test_a_stated_mpp_is_taken_and_checked(client: TestClient, tiles: list[bytes]) -> None:
    """A tile of 96 pixels at 0.2 um is 19.2 um wide: at 32 pixels 0.6 um per pixel, which training saw."""
    assert cautions(client, files(*tiles[:2]), mpp="0.2") == []
    (caution,) = cautions(client, files(*tiles[:2], name="t.png"), mpp="2")
    assert caution.startswith("2 of 2 tiles, resized to 32 pixels, lie outside of the 0.4 to 1.1 um per pixel")
    assert "Cut tiles that are about 16 um wide" in caution and "'mpp'" not in caution
    assert cautions(client, files(tiles[0]), mpp="0.6", region="10,10,32,40") == [], "it is the region that is shown"
    (caution,) = cautions(client, files(tiles[0], name="t.png"), region="10,10,32,40")
    assert caution.startswith(f"1 of 1 {UNKNOWN}")
    answer = client.post("/v1/embeddings", files=files(tiles[0]), data={"encoder": "histology", "mpp": "60"})
    assert answer.status_code == 422 and "mpp out of range" in answer.json()["detail"]


def test_a_region_of_a_slide_without_mpp(client: TestClient, tmp_path: Path) -> None:
    from tests.data.histology import write_slide

    for name, mpp in (("silent", None), ("slide", 0.5)):
        write_slide(tmp_path / f"{name}.tif", width=600, height=500, mpp=mpp)
    silent, slide = ((tmp_path / f"{name}.tif").read_bytes() for name in ("silent", "slide"))
    (caution,) = cautions(client, files(silent, name="silent.tif"), region="100,120,96,64")
    assert caution.startswith("1 of 1 regions have no mpp") and GIVE in caution
    assert cautions(client, files(silent, name="silent.tif"), region="100,120,96,64", mpp="0.5") == []
    assert cautions(client, files(slide, name="slide.tif"), region="100,120,96,64") == []
    assert cautions(client, files(slide, name="slide.tif")) == []
    assert cautions(client, files(silent, name="silent.tif"), mpp="0.5") == []


def test_cautions_in_every_form_of_the_answer(client: TestClient, tiles: list[bytes]) -> None:
    def ask(accept: str, *contents: bytes, encoder: str = "histology") -> Any:
        data, headers = {"encoder": encoder}, {"Accept": accept}
        data |= {"keys": json.dumps(["ä"] * len(contents))}
        return client.post("/v1/embeddings", files=files(*contents), data=data, headers=headers)

    for accept in ("application/x-npy", "application/x-ndjson", ARROW, PARQUET):
        answer = ask(accept, *tiles[:2])
        (caution,) = json.loads(answer.headers["x-cautions"])
        assert caution.startswith(f"2 of 2 {UNKNOWN}") and caution.endswith(": 0 key 'ä', 1 key 'ä'")
        if accept in (ARROW, PARQUET):
            read = pq.read_table if accept == PARQUET else lambda stream: pa.ipc.open_stream(stream).read_all()
            metadata = read(io.BytesIO(answer.content)).schema.metadata
            assert json.loads(metadata[b"cautions"]) == [caution]
        assert "x-cautions" not in ask(accept, png(), encoder="images").headers
    assert ask("application/json", png(), encoder="images").json()["cautions"] == []
