import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits as astropy_fits
from PIL import Image

from data_adapters.base import Record, Rejected
from data_adapters.catalog import Catalog
from data_adapters.errors import BadFileError
from data_adapters.galaxy.adapter import GalaxyAdapter
from data_adapters.galaxy.metadata import parse_angle, position_in, sky_cell
from tests.data import galaxy as make


def scan(root, catalog=None, **options):
    return list(GalaxyAdapter(**options).scan(root, catalog=catalog))


def read(path, **options):
    adapter = GalaxyAdapter(background="none", **options)
    (record,) = adapter.scan(path)
    assert isinstance(record, Record), record
    return record, adapter.read(record, np.random.default_rng(0))


def reason(path, **options):
    """Why scan, or else reading, refuses a file."""
    adapter = GalaxyAdapter(**options)
    (found,) = adapter.scan(path)
    if isinstance(found, Rejected):
        text = found.reason + found.remedy
        assert path.name not in text
        return found.reason
    with pytest.raises(BadFileError) as caught:
        adapter.verify(found)
    return caught.value.cause


def test_cube_keeps_every_flux_value_and_its_place(tmp_path):
    flux = make.source()
    record, pixels = read(make.write_cube(tmp_path / "a.fits", flux))
    assert pixels.dtype == np.float32
    assert pixels.dtype.isnative
    np.testing.assert_array_equal(pixels, flux)
    meta = record.meta
    assert (meta["kind"], meta["bands"], meta["size"], meta["unit"]) == ("flux", "g,r,z", [48, 48], "nanomaggy")
    assert (meta["ra"], meta["dec"]) == pytest.approx((150, 2))
    assert meta["pixel_scale"] == pytest.approx(make.PIXEL)
    assert record.group == sky_cell(150, 2)


def test_background_is_the_border_median_of_each_band(tmp_path):
    sky = np.asarray([300.0, 40.0, 0.0], np.float32)
    path = make.write_cube(tmp_path / "a.fits", make.source(noise=0) + sky)
    (record,) = scan(path)
    pixels = GalaxyAdapter().read(record, np.random.default_rng(0))
    np.testing.assert_allclose(pixels, make.source(noise=0), atol=1e-3)


@pytest.mark.parametrize("key", ["EXTNAME", "FILTER", "BAND"])
def test_one_extension_a_band(tmp_path, key):
    flux = make.source()
    record, pixels = read(make.write_band_extensions(tmp_path / "a.fits", flux, key=key))
    assert record.meta["bands"] == "g,r,z"
    np.testing.assert_array_equal(pixels, flux)


def test_bands_option_orders_and_selects(tmp_path):
    flux = make.source(bands="griz")
    path = make.write_cube(tmp_path / "a.fits", flux, bands="griz")
    record, pixels = read(path, bands="z,r,g")
    assert record.meta["bands"] == "z,r,g"
    np.testing.assert_array_equal(pixels, flux[..., [3, 1, 0]])
    extensions = make.write_band_extensions(tmp_path / "b.fits", make.source())
    _, pixels = read(extensions, bands="z,g")
    np.testing.assert_array_equal(pixels, make.source()[..., [2, 0]])


def test_unnamed_planes_need_the_option(tmp_path):
    path = make.write_cube(tmp_path / "a.fits", make.source(), bands=None)
    assert "does not name" in reason(path)
    assert "3 unnamed planes" in reason(path, bands="g,r")
    record, pixels = read(path, bands="g,r,z")
    assert record.meta["bands"] == "g,r,z"
    np.testing.assert_array_equal(pixels, make.source())


def catalogue(folder, *rows):
    (folder / "bands.csv").write_text("path,bands\n" + "".join(f'{path},"{bands}"\n' for path, bands in rows))
    return Catalog(folder / "bands.csv")


def test_a_catalogue_names_the_planes_of_each_file_in_its_own_order(tmp_path):
    flux = make.source()
    make.write_cube(tmp_path / "a.fits", flux, bands=None)
    make.write_cube(tmp_path / "b.fits", flux[..., ::-1], bands=None)
    make.write_cube(tmp_path / "c.fits", flux)  # the header agrees
    make.write_single(tmp_path / "d.fits", flux[..., 0])
    rows = ("a.fits", "g,r,z"), ("b.fits", "z r g"), ("c.fits", "g,r,z"), ("d.fits", "g")
    records = scan(tmp_path, catalogue(tmp_path, *rows))
    assert [record.meta["bands"] for record in records] == ["g,r,z", "z,r,g", "g,r,z", "g"]
    adapter = GalaxyAdapter(background="none", bands="z,g")
    records = list(adapter.scan(tmp_path, catalog=Catalog(tmp_path / "bands.csv")))
    assert [getattr(found, "reason", found.uri[-6]) for found in records][:3] == ["a", "b", "c"]
    assert "differ from the archive's z,g" in records[3].reason
    for record in records[:3]:
        assert record.meta["bands"] == "z,g"
        np.testing.assert_array_equal(adapter.pixels(record), flux[..., [2, 0]])


@pytest.mark.parametrize(
    ("named", "stated", "said"),
    [
        ("grz", "z,r,g", "bands z,r,g in the catalogue, but g,r,z in the file"),
        ("grz", "g,r", "bands g,r in the catalogue, but g,r,z in the file"),
        (None, "g,r", "bands g,r in the catalogue for a file of 3 planes"),
        (None, "g,r,r", "bands g,r,r in the catalogue for a file of 3 planes"),
        (None, "", "3 planes whose bands the header does not name"),
    ],
)
def test_a_catalogue_that_contradicts_the_file_is_refused(tmp_path, named, stated, said):
    make.write_cube(tmp_path / "a.fits", make.source(), bands=named)
    (found,) = scan(tmp_path / "a.fits", catalogue(tmp_path, ("a.fits", stated)))
    assert isinstance(found, Rejected)
    assert found.reason == said
    assert "catalogue" in found.remedy


@pytest.mark.parametrize(("rows", "side", "survey"), [(3, 69, "SDSS"), (2, 256, "DECaLS")])
def test_galaxy10_as_it_is_published(tmp_path, rows, side, survey):
    images = np.stack([make.picture(side, seed=row) for row in range(rows)])
    with h5py.File(tmp_path / f"Galaxy10_{survey}.h5", "w") as file:
        file["images"], file["ans"] = images, np.arange(rows, dtype=np.uint8)
        if survey == "DECaLS":
            file["ra"], file["dec"] = np.asarray([12.5, 200.25]), np.asarray([-3.5, 41.0])
            file["redshift"], file["pxscale"] = np.asarray([0.021, np.nan]), np.full(rows, 0.262)
    records = scan(tmp_path)
    assert [record.label for record in records] == [str(row) for row in range(rows)]
    assert {(*record.meta["size"], record.meta["bands"], record.meta["kind"]) for record in records} == {
        (side, side, "r,g,b", "picture")
    }
    adapter = GalaxyAdapter(global_size=64, local_size=32).fit(records)
    for row, record in enumerate(records):
        np.testing.assert_array_equal(adapter.pixels(record), images[row])
    if survey == "DECaLS":
        assert [record.group for record in records] == [sky_cell(12.5, -3.5), sky_cell(200.25, 41)]
        assert [record.meta.get("redshift") for record in records] == [0.021, None]
    else:
        assert [record.group for record in records] == [f"Galaxy10_SDSS-{row}" for row in range(rows)]


def test_other_bands_are_refused_at_scan(tmp_path):
    path = make.write_cube(tmp_path / "a.fits", make.source(bands="gr"), bands="gr")
    assert reason(path, bands="g,r,z") == "bands g,r differ from the archive's g,r,z"


@pytest.mark.parametrize("algorithm", ["RICE_1", "HCOMPRESS_1", "GZIP_1"])
def test_compressed_counts(tmp_path, algorithm):
    counts = np.round(make.source(bands="r")[..., 0] * 1e4).astype(np.int16)
    record, pixels = read(make.write_compressed(tmp_path / "a.fits.fz", counts, algorithm=algorithm))
    assert record.meta["bands"] == "r"
    np.testing.assert_array_equal(pixels[..., 0], counts.astype(np.float32))


def test_scaled_integers_and_blank(tmp_path):
    path = make.write_scaled(tmp_path / "a.fits", make.source(bands="r"))
    _, pixels = read(path)
    np.testing.assert_array_equal(pixels[..., 0], astropy_fits.getdata(path).astype(np.float32))
    np.testing.assert_allclose(pixels, make.source(bands="r"), atol=1e-5)
    counts = np.arange(400, dtype=np.int16).reshape(20, 20)
    blank = make.write_single(tmp_path / "b.fits", counts, BLANK=7)
    _, pixels = read(blank)
    assert pixels[0, 7, 0] == 0
    assert pixels[0, 8, 0] == 8


STORED = {  # dtype as stored -> (BZERO, BLANK) in the ways in which archives write them
    "u1": [(0, 255), (0, 0), (-128, 0)],
    ">i2": [(0, -32768), (0, 0), (32768, 32767), (32768, -32768), (32768, 0), (32768, 65535)],
    ">i4": [(0, -(2**31)), (2**31, 2**31 - 1), (2**31, -(2**31))],
    ">i8": [(0, -(2**63)), (2**63, 2**63 - 1), (2**63, -(2**63))],
}


CASES = [
    (dtype, zero, blank, scale, packed)
    for dtype, cases in STORED.items()
    for zero, blank in cases
    for scale in (1, 0.5)
    for packed in (False, True)
    # unsigned numbers have no scale; compressed tiles hold 32 bits at most
    if (scale == 1 or not (blank == 65535 or zero >= 2**31)) and not (packed and dtype == ">i8")
]


def blank_hdu(kind, dtype, zero, blank, scale=1):
    """An HDU of counts 1 to 100 whose 60 pixels in two corners hold BLANK, and the counts."""
    counts = np.random.default_rng(0).integers(1, 100, (48, 48))
    stored = (counts + np.int64(-zero)).astype(dtype)
    mask = np.zeros(counts.shape, bool)
    mask[:6, :5] = mask[-3:, -10:] = True
    limits = np.iinfo(dtype)
    stored[mask] = blank if limits.min <= blank <= limits.max else blank - zero
    hdu = kind(stored)
    hdu.header["BLANK"] = blank
    hdu.header["FILTER"] = "r"
    if (zero, scale) != (0, 1):
        hdu.header["BSCALE"], hdu.header["BZERO"] = scale, zero
    stored_values = counts if scale == 1 else (counts - zero) * scale + zero
    return hdu, stored_values.astype(np.float32), mask


@pytest.mark.parametrize(("dtype", "zero", "blank", "scale", "packed"), CASES)
def test_blank_is_compared_with_the_stored_integers(tmp_path, dtype, zero, blank, scale, packed):
    kind = astropy_fits.CompImageHDU if packed else astropy_fits.PrimaryHDU
    hdu, values, mask = blank_hdu(kind, dtype, zero, blank, scale)
    hdus = astropy_fits.HDUList([astropy_fits.PrimaryHDU(), hdu]) if packed else hdu
    hdus.writeto(tmp_path / "a.fits", output_verify="ignore")
    _, pixels = read(tmp_path / "a.fits")
    assert not pixels[..., 0][mask].any()
    np.testing.assert_array_equal(pixels[..., 0][~mask], values[~mask])


def test_blank_of_each_band_and_of_a_cube(tmp_path):
    hdus = [astropy_fits.PrimaryHDU()]
    for name, blank in (("g", 32767), ("r", -32768)):
        hdu, _, mask = blank_hdu(astropy_fits.ImageHDU, ">i2", 32768, blank)
        hdu.header["FILTER"] = name
        hdus.append(hdu)
    astropy_fits.HDUList(hdus).writeto(tmp_path / "bands.fits", output_verify="ignore")
    _, pixels = read(tmp_path / "bands.fits")
    np.testing.assert_array_equal(pixels == 0, np.repeat(mask[..., None], 2, axis=2))
    cube = astropy_fits.PrimaryHDU(np.stack([hdu.data, hdu.data]))
    cube.header["BZERO"], cube.header["BLANK"], cube.header["BANDS"] = 32768, -32768, "gr"
    cube.writeto(tmp_path / "cube.fits", output_verify="ignore")
    _, pixels = read(tmp_path / "cube.fits")
    np.testing.assert_array_equal(pixels == 0, np.repeat(mask[..., None], 2, axis=2))
    cube.data = np.full_like(cube.data, -32768)
    cube.data[:, :30] = 5
    cube.writeto(tmp_path / "much.fits", output_verify="ignore")
    assert "more than 10 % blank" in reason(tmp_path / "much.fits")


@pytest.mark.parametrize("where", ["keyword", "column"])
def test_zblank_of_a_compressed_image(tmp_path, where):
    hdu, values, mask = blank_hdu(astropy_fits.CompImageHDU, ">i2", 32768, 32767)
    astropy_fits.HDUList([astropy_fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits", output_verify="ignore")
    with astropy_fits.open(tmp_path / "a.fits", disable_image_compression=True) as raw:
        table = raw[1]
        del table.header["BLANK"]
        if where == "keyword":
            table.header["ZBLANK"] = 32767
        else:
            tiles = np.empty(len(table.data), object)
            tiles[:] = [np.array(tile) for tile in table.data["COMPRESSED_DATA"]]
            columns = [
                astropy_fits.Column("COMPRESSED_DATA", "PB()", array=tiles),
                astropy_fits.Column("ZBLANK", "J", array=np.full(len(tiles), 32767, np.int32)),
            ]
            kept = [card for card in table.header.cards if card.keyword.startswith(("Z", "BZERO", "BSCALE"))]
            table = astropy_fits.BinTableHDU.from_columns(columns)
            table.header.extend(kept)
        astropy_fits.HDUList([astropy_fits.PrimaryHDU(), table]).writeto(tmp_path / "b.fits", output_verify="ignore")
    _, pixels = read(tmp_path / "b.fits")
    np.testing.assert_array_equal(pixels[..., 0] == 0, mask | (values == 0))


def test_blank_in_floats_means_nothing_and_another_blank_is_refused(tmp_path):
    flux = make.source(bands="r")[..., 0]
    flux[5, 5] = 7
    hdu = astropy_fits.PrimaryHDU(flux)
    hdu.header["BLANK"] = 7
    hdu.writeto(tmp_path / "a.fits", output_verify="ignore")
    _, pixels = read(tmp_path / "a.fits")
    np.testing.assert_array_equal(pixels[..., 0], flux)
    hdu = astropy_fits.PrimaryHDU(np.arange(400, dtype=np.int16).reshape(20, 20))
    hdu.header["BLANK"] = "none"
    hdu.writeto(tmp_path / "b.fits", output_verify="ignore")
    assert reason(tmp_path / "b.fits") == "BLANK is no whole number"


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">i4", "u1", ">u2"])
def test_dtypes_and_gzip(tmp_path, dtype):
    image = np.round(np.abs(make.source(bands="r")[..., 0]) * 2000).astype(dtype)
    path = make.write_single(tmp_path / "a.fits", image)
    packed = tmp_path / "b.fits.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        record, pixels = read(file)
        assert record.meta["bands"] == "unnamed"
        np.testing.assert_array_equal(pixels[..., 0], image.astype(np.float32))


def test_axes_of_length_one_are_dropped(tmp_path):
    image = make.source(bands="r")[..., 0]
    _, pixels = read(make.write_single(tmp_path / "radio.fits", image[None, None]))
    np.testing.assert_array_equal(pixels[..., 0], image)


def test_few_blank_pixels_become_empty_sky_and_many_are_refused(tmp_path):
    image = make.source(bands="r")[..., 0] + 500
    image[:4, :20] = np.nan
    image[30, 30] = np.inf
    path = make.write_single(tmp_path / "few.fits", image)
    (record,) = scan(path)
    pixels = GalaxyAdapter().read(record, np.random.default_rng(0))
    assert np.isfinite(pixels).all()
    assert not pixels[:4, :20].any()
    assert abs(np.median(pixels[:2, 22:])) < 0.01
    image[:, :6] = np.nan
    assert "10 % blank" in reason(make.write_single(tmp_path / "many.fits", image))


def test_one_bad_band_refuses_the_cube(tmp_path):
    flux = make.source()
    flux[..., 1] = 3.0
    assert "dead band" in reason(make.write_cube(tmp_path / "dead.fits", flux))
    flux[..., 1] = np.nan
    assert "blank" in reason(make.write_cube(tmp_path / "blank.fits", flux))


def test_what_is_no_cutout_is_refused(tmp_path):
    single = make.source(bands="r")[..., 0]
    assert reason(make.write_table(tmp_path / "table.fits")) == "only tables, no image"
    astropy_fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    assert reason(tmp_path / "empty.fits") == "no image in the file"
    visibilities = np.zeros((2, 1, 1, 1, 20, 20), np.float32)
    groups = astropy_fits.GroupData(visibilities, parnames=["UU"], pardata=[np.arange(2.0)], bitpix=-32)
    astropy_fits.GroupsHDU(groups).writeto(tmp_path / "groups.fits")
    assert "random groups" in reason(tmp_path / "groups.fits")
    assert "less than 16" in reason(make.write_single(tmp_path / "tiny.fits", single[:12]))
    assert "strip" in reason(make.write_single(tmp_path / "strip.fits", np.tile(single, (5, 1))))
    assert "more than 64 pixels" in reason(make.write_single(tmp_path / "wide.fits", np.tile(single, 2)), max_side=64)
    assert "last axis" in reason(make.write_single(tmp_path / "last.fits", make.source()))
    spectrum = np.zeros((40, 20, 40), np.float32)
    assert "more than 32 planes" in reason(make.write_single(tmp_path / "spectrum.fits", spectrum))


def test_chips_of_a_mosaic_are_no_bands(tmp_path):
    chips = [astropy_fits.ImageHDU(make.source(bands="r", seed=k)[..., 0], name="SCI") for k in range(3)]
    astropy_fits.HDUList([astropy_fits.PrimaryHDU(), *chips]).writeto(tmp_path / "a.fits")
    assert "not named as bands" in reason(tmp_path / "a.fits")


def test_errors_and_masks_beside_one_image_are_passed_over(tmp_path):
    image = make.source(bands="r")[..., 0]
    science = astropy_fits.ImageHDU(image, name="SCI")
    science.header["FILTER"] = "F160W"
    beside = [astropy_fits.ImageHDU(np.ones_like(image), name=name) for name in ("ERR", "DQ", "WHT")]
    astropy_fits.HDUList([astropy_fits.PrimaryHDU(), science, *beside]).writeto(tmp_path / "a.fits")
    record, pixels = read(tmp_path / "a.fits")
    assert record.meta["bands"] == "F160W"
    np.testing.assert_array_equal(pixels[..., 0], image)


@pytest.mark.parametrize("part", [0.95, 0.6, 0.2, 0.01])
@pytest.mark.parametrize("packed", [False, True])
def test_truncated_fits_is_refused(tmp_path, part, packed):
    path = make.write_cube(tmp_path / "a.fits", make.source(64))
    data = path.read_bytes()
    # FITS pads its last block with zeros; cut the data themselves.
    data = data[: 2880 + 64 * 64 * 3 * 4]
    data = gzip.compress(data) if packed else data
    path = tmp_path / ("b.fits.gz" if packed else "b.fits")
    path.write_bytes(data[: int(len(data) * part)])
    assert reason(path) == "damaged or truncated FITS file"


def test_unix_compress_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "a.fits.Z").write_bytes(b"\x1f\x9d\x90" + bytes(100))
    (found,) = scan(tmp_path)
    assert isinstance(found, Rejected)
    assert "gz" in found.remedy or "Copy" in found.remedy


def test_hdf5_pictures_have_rows_labels_and_cells(tmp_path):
    path = make.write_hdf5(tmp_path / "Galaxy10.h5")
    adapter = GalaxyAdapter()
    records = list(adapter.scan(path))
    assert [record.item for record in records] == [str(row) for row in range(6)]
    assert [record.label for record in records] == ["0", "1", "2", "0", "1", "2"]
    assert len({record.group for record in records}) == 6
    assert records[0].group == sky_cell(150, -30)
    assert records[3].meta["pixel_scale"] == pytest.approx(make.PIXEL)
    for row, record in enumerate(records):
        np.testing.assert_array_equal(adapter.read(record, np.random.default_rng(0)), make.picture(seed=row))


@pytest.mark.parametrize(
    ("name", "values", "labels"),
    [
        ("label", np.array([[0], [1], [2], [0], [1], [2]]), ["0", "1", "2", "0", "1", "2"]),
        ("labels", np.eye(6, dtype=np.float32)[[0, 2, 1, 0, 2, 5]], ["0", "2", "1", "0", "2", "5"]),
        ("ans", np.array([1.0, np.nan, 0, 2, 1, 1]), ["1", None, "0", "2", "1", "1"]),
        ("ans", np.array([b"Sa", b"", b"E", b"Sb", b"NA", b"E"]), ["Sa", None, "E", "Sb", None, "E"]),
    ],
)
def test_hdf5_label_columns_of_other_shapes_are_read(tmp_path, name, values, labels):
    path = make.write_hdf5(tmp_path / "t.h5")
    with h5py.File(path, "r+") as file:
        del file["ans"]
        file[name] = values
        ra = file["ra"][:]
        del file["ra"]
        file["ra"] = ra[:, None]
    records = scan(path)
    assert [record.label for record in records] == labels and records[1].meta["ra"] == 160


@pytest.mark.parametrize(
    ("name", "values", "cause"),
    [
        ("ans", np.arange(5), "labels that do not belong to the images"),
        ("ans", np.arange(7), "labels that do not belong to the images"),
        ("ans", np.full((6, 3), 0.3), "neither one an image nor one-hot"),
        ("ans", np.array([[1, 1], [0, 0]] * 3), "several labels, or none"),
        ("ans", h5py.SoftLink("/dec"), "'ans' is no column of values"),
        ("dec", np.arange(5.0), "a column 'dec' of float64"),
    ],
)
def test_hdf5_columns_that_do_not_fit_are_refused(tmp_path, name, values, cause):
    path = make.write_hdf5(tmp_path / "t.h5")
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = values
    (found,) = scan(path)
    assert isinstance(found, Rejected) and cause in found.reason and found.remedy


def test_hdf5_flux_is_channels_last_float32(tmp_path):
    path = make.write_hdf5(tmp_path / "flux.hdf5", channels_first_flux=True)
    adapter = GalaxyAdapter(background="none")
    records = list(adapter.scan(path))
    assert records[2].meta["kind"] == "flux"
    assert records[2].meta["bands"] == "g,r,z"
    np.testing.assert_array_equal(adapter.read(records[2], np.random.default_rng(0)), make.source(seed=2))


@pytest.mark.parametrize("declared", ["_FillValue", "missing_value", "creation"])
def test_fill_values_of_hdf5_are_blank(tmp_path, declared):
    counts = np.random.default_rng(0).integers(1, 100, (2, 40, 40)).astype(np.uint16)
    counts[0, :5, :5] = counts[1, :20] = 65535
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", data=counts, fillvalue=65535 if declared == "creation" else None)
        if declared != "creation":
            images.attrs[declared] = np.uint16(65535)
    adapter = GalaxyAdapter(background="none")
    few, many = adapter.scan(tmp_path)
    np.testing.assert_array_equal(adapter.pixels(few)[..., 0], np.where(counts[0] == 65535, 0, counts[0]))
    with pytest.raises(BadFileError, match="more than 10 % blank"):
        adapter.pixels(many)


def test_fill_values_of_hdf5_pictures_are_black(tmp_path):
    pictures = np.stack([make.picture(40), make.picture(40, seed=1)])
    pictures[pictures == 255] = 254
    pictures[0, :5, :5] = pictures[1, :20] = 255
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = pictures
        file["images"].attrs["_FillValue"] = np.uint8(255)
    adapter = GalaxyAdapter()
    few, many = adapter.scan(tmp_path)
    np.testing.assert_array_equal(adapter.pixels(few), np.where(pictures[0] == 255, 0, pictures[0]))
    with pytest.raises(BadFileError, match="more than 10 % blank"):
        adapter.pixels(many)


def test_hdf5_without_images_or_damaged_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spectra"] = np.zeros((3, 5))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"] = np.zeros((3, 5))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["images"] = h5py.ExternalLink(str(tmp_path / "d.h5"), "images")
    data = make.write_hdf5(tmp_path / "d.h5").read_bytes()
    (tmp_path / "e.h5").write_bytes(data[: len(data) // 2])
    found = {path.name[0]: reason(path) for path in sorted(tmp_path.iterdir()) if path.name != "d.h5"}
    assert found == {
        "a": "no dataset 'images' in the file",
        "b": "images whose axes are unclear",
        "c": "no dataset 'images' in the file",
        "e": "damaged or truncated HDF5 file",
    }


def test_catalogue_gives_positions_and_group(tmp_path):
    catalog = Catalog(make.write_pictures(tmp_path))
    records = scan(tmp_path, catalog)
    assert [record.group for record in records] == ["field-1", sky_cell(30, 5), sky_cell(50, 10), "galaxy3"]
    assert [record.label for record in records] == ["spiral", "elliptical"] * 2
    assert records[0].meta["bands"] == "r,g,b"


def test_a_position_off_the_sky_is_refused(tmp_path):
    make.write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("path,ra,dec\ngalaxy0.png,10,99\ngalaxy1.png,abc,1\n")
    found = scan(tmp_path, Catalog(tmp_path / "labels.csv"))
    assert [isinstance(item, Rejected) for item in found] == [True, True, False, False]


@pytest.mark.parametrize(("unit", "per_degree"), [("deg", 1), ("arcsec", 3600), ("arcmin", 60), ("rad", np.pi / 180)])
@pytest.mark.parametrize("matrix", [False, True])
def test_units_of_fits_coordinates(tmp_path, unit, per_degree, matrix):
    hdu = astropy_fits.PrimaryHDU(make.source(bands="r")[..., 0])
    step = make.PIXEL / 3600 * per_degree
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 24.5, "CRPIX2": 24.5, "CUNIT1": unit, "CUNIT2": unit}
    cards |= {"CRVAL1": 150 * per_degree, "CRVAL2": 2 * per_degree, "FILTER": "r"}
    cards |= {"CD1_1": -step, "CD2_2": step} if matrix else {"CDELT1": -step, "CDELT2": step}
    hdu.header.update(cards)
    hdu.writeto(tmp_path / "a.fits")
    (record,) = scan(tmp_path)
    assert record.meta["pixel_scale"] == pytest.approx(make.PIXEL)
    assert (record.meta["ra"], record.meta["dec"]) == pytest.approx((150, 2))


def test_sky_cells_of_neighbours_and_the_pole():
    assert sky_cell(10.0, 5.0) == sky_cell(370.0 - 360.0, 5.0001)
    assert sky_cell(10.0, 5.0) == sky_cell(-350.0, 5.0)
    assert sky_cell(10.0, 5.0) != sky_cell(20.0, 5.0)
    assert sky_cell(0.0, 90.0)


def test_angles():
    assert parse_angle("11:47:19.05", hours=True) == pytest.approx(176.829375)
    assert parse_angle("-00:30:00", hours=False) == pytest.approx(-0.5)
    assert parse_angle("12.5", hours=True) == 12.5
    assert parse_angle("none", hours=True) is None
    assert parse_angle(float("nan"), hours=True) is None


def test_sixteen_bit_picture_is_refused(tmp_path):
    from PIL import Image

    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(tmp_path / "a.png")
    assert "16 bits" in reason(tmp_path / "a.png")


def test_kind_option_refuses_the_other_kind(tmp_path):
    make.write_cube(tmp_path / "a.fits", make.source())
    make.write_pictures(tmp_path, count=1)
    flux = scan(tmp_path, kind="flux")
    assert [type(item) for item in flux] == [Record, Rejected]
    picture = scan(tmp_path, kind="picture")
    assert [type(item) for item in picture] == [Rejected, Record]
    assert "the option kind, is for pictures" in picture[0].reason


@pytest.mark.parametrize(
    ("name", "ra", "dec"),
    [
        ("J123456.78+012345.6", 188.73658, 1.396),
        ("SDSS_J123456.78-012345.6_gri", 188.73658, -1.396),
        ("j123456.78p012345.6", 188.73658, 1.396),
        ("J1234-0123", 188.5, -1.38333),
        ("12h34m56.7s-01d23m45s", 188.73625, -1.39583),
        ("cutout_150.1163_2.2057", 150.1163, 2.2057),
        ("150.1163-2.2057", 150.1163, -2.2057),
        ("COSMOS_150.116_2.205_F814W", 150.116, 2.205),
        ("123.45_-12.34", 123.45, -12.34),
        ("ra150.1_dec-2.2", 150.1, -2.2),
    ],
)
def test_positions_in_names_of_files(name, ra, dec):
    assert position_in(name) == pytest.approx((ra, dec), abs=1e-4)


@pytest.mark.parametrize(
    "name", ["0001", "587722984435351614", "123.45_6", "snap_0.15_12.50", "z0.150_m12.500", "400.123_12.345", "J99+99"]
)
def test_other_numbers_are_no_positions(name):
    assert position_in(name) is None


def test_groups_are_made_of_whole_names_and_folders(tmp_path):
    near = [f"150.{n:04d}_{n - 10}.0001.png" for n in range(0, 20, 5)]  # equal before the first dot
    same = ["150.1000_2.2000.png", "150.1001_2.2001.jpg"]
    twins = ["a/0001.jpg", "a/x.1.png", "a/x.2.png", "b/0001.jpg"]
    for number, name in enumerate([*near, *same, *twins]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(make.picture(seed=number)).save(tmp_path / name)
    for folder in "ab":
        file = make.write_hdf5(tmp_path / folder / "t.v1.h5", rows=2)
        with h5py.File(file, "a") as table:
            del table["ra"]

    def groups(**options):
        found = scan(tmp_path, **options)
        return {
            Path(r.uri).relative_to(tmp_path).as_posix() + f" {r.item}".rstrip(): (r.group, r.grouped_by) for r in found
        }

    in_name = "sky position in the file's name"
    found = groups(group_by="file")
    assert len({found[name] for name in near}) == 4 and {found[name][1] for name in near} == {in_name}
    assert {found[name] for name in same} == {(sky_cell(150.1, 2.2), in_name)}
    assert [found[name] for name in twins] == [(name[:-4], "file") for name in twins]
    rows = [(f"{folder}/t.v1.h5 {row}", (f"{folder}/t.v1-{row}", "row")) for folder in "ab" for row in range(2)]
    assert [(name, found[name]) for name, _ in rows] == rows
    found = groups()
    assert [found[name] for name in twins] == [(name[0], "folder:1") for name in twins]
    assert [found[name] for name, _ in rows] == [(name[0], "folder:1") for name, _ in rows]
    assert found[same[0]] == (sky_cell(150.1, 2.2), in_name)
