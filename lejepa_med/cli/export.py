"""Commands that take encoders and results to other tools: export, latency. Heavy imports wait for the command."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import CliPositionalArg

from lejepa_med.cli.settings import make_console
from lejepa_med.config import Columns, Section
from lejepa_med.errors import UserError

FORMATS = (".onnx", ".csv", ".parquet", ".fits", ".h5", ".geojson", ".html", ".png", ".dcm")
ONE_SLIDE = (".h5", ".geojson", ".png")  # a file a slide


class ExportCommand(Section):
    """Write an encoder or a table in the format of another tool. The ending of --out, or --as, chooses it.

    Of a run or encoder folder: .onnx, normalisation, views, encoder and probe as one graph, compared with PyTorch on
    real images before it is kept. Of an embedding table: .csv, .parquet and .fits, with the probe's predictions where
    --probe is given. Of a table with a row for each tile (embed --per-tile): .h5 as TRIDENT and CLAM read it, .geojson
    of the predictions for QuPath, .html and .png heat maps of the predictions. Of a run with --probe and --series:
    .dcm, the probe's answer on a DICOM series as a structured report, or with --as sc as a picture.
    """

    source: CliPositionalArg[Path] = Field(
        description="run folder or its encoder folder (.onnx), else embedding table of: lejepa-med embed"
    )
    out: Path = Field(description=f"file to write: {', '.join(FORMATS)}; a folder with --as, for a file a slide")
    as_: Literal["onnx", "csv", "parquet", "fits", "h5", "geojson", "html", "png", "sr", "sc"] | None = Field(
        default=None, validation_alias=AliasChoices("as"), description="the format, where --out does not end in it"
    )
    probe: Path | None = Field(default=None, description="probe folder of: lejepa-med probe")
    names: Path | None = Field(
        default=None,
        description="folder of a scan or run: its file names go into tables and names of files, and its slides below "
        "heat maps. Without it only pseudonyms are written",
    )
    series: Path | None = Field(default=None, description=".dcm: folder of the DICOM series that is answered")
    store: str | None = Field(
        default=None, description=".dcm: also send it to this DICOMweb server, such as http://localhost:8042/dicom-web"
    )
    vectors: bool = Field(default=False, description=".csv, .parquet, .fits: the vectors, too")
    of: str | None = Field(default=None, description=".html, .png: the class whose probability is drawn")
    annotations: bool = Field(default=False, description=".geojson: QuPath annotations in place of tiles (detections)")
    images: Path | None = Field(
        default=None, description=".onnx: folder or manifest of images to compare on; None: the run's own"
    )
    bound: float = Field(
        default=1e-4, gt=0, description=".onnx: largest difference from PyTorch; above it nothing is written"
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        suffix = ".dcm" if self.as_ in ("sr", "sc") else f".{self.as_}" if self.as_ else self.out.suffix.lower()
        if suffix not in FORMATS:
            raise UserError(
                f"--out {self.out} ends in no format that export writes.",
                remedy=f"Give a file that ends in {', '.join(FORMATS)}, or a folder with --as.",
            )
        if self.as_ and self.out.suffix.lower() != suffix and suffix not in ONE_SLIDE:
            raise UserError(f"{suffix} is one file.", remedy=f"Name it with its ending: --out {self.out}{suffix}")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".onnx":
            self._onnx()
        elif suffix == ".dcm":
            self._dicom()
        elif suffix in (".csv", ".parquet", ".fits"):
            self._table()
        else:
            self._slides(suffix)

    def _dicom(self) -> None:
        from lejepa_med.export import dicom
        from lejepa_med.models.folder import load_encoder
        from lejepa_med.probes.probe import Probe

        if self.probe is None or self.series is None:
            raise UserError(
                "A .dcm file is the answer of a probe on one DICOM series.",
                remedy="Add --probe FOLDER of: lejepa-med probe, and --series FOLDER with the DICOM files.",
            )
        answer = dicom.answer_series(load_encoder(self.source), Probe.load(self.probe), self.series)
        made = dicom.secondary_capture(answer) if self.as_ == "sc" else dicom.structured_report(answer)
        dicom.write_dicom(self.out, made)
        for line in dicom.lines_of(answer):
            print(line)
        for remark in answer.probe.remarks([answer.prediction]):
            print(f"note: {remark.rstrip('.')}.")
        print(f"wrote {self.out}")
        if self.store is not None:
            dicom.store(self.store, made)
            print(f"sent to {self.store}")

    def _table(self) -> None:
        from lejepa_med.export.tables import coordinate_note, export_table, write_table
        from lejepa_med.probes.names import Names
        from lejepa_med.probes.probe import Probe

        names = None if self.names is None else Names(self.names)
        probe = None if self.probe is None else Probe.load(self.probe)
        table = export_table(self.source, probe=probe, names=names, vectors=self.vectors)
        write_table(self.out, table)
        if self.out.suffix.lower() == ".fits" and (note := coordinate_note(table)):
            print(f"note: {note}.")
        if names is not None:
            print(f"names: {names.note}")
        print(f"wrote {table.num_rows:,} rows and {table.num_columns} columns to {self.out}")

    def _slides(self, suffix: str) -> None:
        from data_adapters.manifest import Manifest
        from lejepa_med.export import slides as made
        from lejepa_med.export.tables import predict_table
        from lejepa_med.models.embed import EmbeddingTable
        from lejepa_med.probes.names import Names
        from lejepa_med.probes.probe import Probe

        manifest = None if self.names is None else Manifest.read(Names(self.names).file)
        found = made.slides_of(self.source, manifest=manifest, pictures=suffix in (".html", ".png"))
        table = EmbeddingTable.open(self.source)
        if suffix == ".h5":
            written = list(made.targets(self.out, found, suffix))
            for file, one in written:
                made.write_h5(file, one, table.vectors, encoder=table.encoder)
            print(f"wrote {len(table.ids):,} tiles of {len(written):,} slides to {self.out}")
            return
        if self.probe is None:
            raise UserError(
                f"A {suffix} file shows the answers of a probe, and none is given.",
                remedy="Add --probe FOLDER of: lejepa-med probe",
            )
        probe = Probe.load(self.probe)
        predictions = predict_table(self.source, probe)
        remarks = [*table.info.get("cautions", []), *probe.remarks(predictions)]
        if suffix == ".geojson":
            for file, one in made.targets(self.out, found, suffix):
                made.write_geojson(file, made.geojson(one, predictions, probe, table.ids, annotations=self.annotations))
        else:
            values, what, ends = made.drawn_values(predictions, probe, of=self.of)
            if suffix == ".html":
                made.write_heat_page(self.out, found, values, what, ends, notes=remarks)
            else:
                for file, one in made.targets(self.out, found, suffix):
                    made.write_heat_picture(file, one, values, ends)
        for remark in remarks:
            print(f"note: {remark.rstrip('.')}.")
        print(f"wrote {len(table.ids):,} tiles of {len(found):,} slides to {self.out}")

    def _onnx(self) -> None:
        from data_adapters.manifest import Manifest
        from lejepa_med.archive import scan
        from lejepa_med.export.graph import export_onnx, require_onnx, some_images
        from lejepa_med.models.folder import encoder_folder, load_encoder
        from lejepa_med.probes.probe import Probe

        require_onnx()
        console = make_console()
        encoder = load_encoder(self.source)
        probe = None if self.probe is None else Probe.load(self.probe)
        given = self.images or encoder_folder(self.source).resolve().parent / "manifest.parquet"
        if self.images is None and not given.is_file():
            raise UserError(
                "The graph is compared with PyTorch on real images, and this encoder folder lies in no run.",
                remedy="Give some that the encoder takes: --images FOLDER",
            )
        if given.suffix == ".parquet":
            manifest = Manifest.read(given)
        else:
            manifest = scan(encoder.adapter, given, verify=False, of_encoder=True, console=console).manifest
        with console.status("writing the graph and comparing it with PyTorch (10 to 60 seconds)"):
            images = some_images(encoder.adapter, manifest)
            facts = export_onnx(encoder, self.out, images=images, probe=probe, bound=self.bound)
        for name in ("input", "in_the_graph", "outputs", "classes", "parity"):
            if name in facts:
                print(f"{name.replace('_', ' ')}: {facts[name]}")
        print(f"wrote {self.out} ({self.out.stat().st_size / 1e6:.1f} MB, opset {facts['opset']})")


class LatencyCommand(Columns):
    """Show what an image costs and, where labels are known, what it buys: over encoders, views and backbones.

    Milliseconds an image by PyTorch and by onnxruntime on this machine's CPU, beside the balanced accuracy of a probe.
    """

    runs: CliPositionalArg[list[Path]] = Field(description="run folders, or encoder folders")
    views: list[int] | None = Field(
        default=None, description="fixed views to try, such as 1,2,4,8; None: one, and as many as the encoder records"
    )
    backbones: list[str] = Field(
        default=[], description="also the cost of these untrained architectures, such as convnext_atto"
    )
    archive: Path | None = Field(default=None, description="folder of labelled images; None: the run's archive")
    catalog: Path | None = Field(default=None, description="CSV or Parquet: path, label, group; None: the run's own")
    most: int = Field(default=400, ge=20, description="labelled images that are embedded at the most")
    onnx: bool = Field(default=True, description="measure onnxruntime, too")
    out: Path | None = Field(default=None, description="also write a table (.csv), or a page with a plot (.html)")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.study.latency import latency, print_latency, write_latency

        given = self.model_dump(exclude={"runs", "out"})
        found = latency(self.runs, out=self.out, **given)
        print_latency(found)
        if self.out is not None:
            write_latency(self.out, found)
            print(f"wrote {self.out}")


class FetchCommand(Section):
    """List the series of a DICOMweb server, or fetch one into a folder.

    With the environment variable LEJEPA_DICOMWEB_TOKEN, its value is sent as a bearer token.
    """

    server: CliPositionalArg[str] = Field(description="such as http://localhost:8042/dicom-web")
    study: str | None = Field(default=None, description="StudyInstanceUID; None: all studies")
    series: str | None = Field(default=None, description="SeriesInstanceUID of the series to fetch; None: only list")
    modality: str | None = Field(default=None, description="list only series of this DICOM modality, such as MR")
    out: Path | None = Field(default=None, description="folder of the fetched files")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.export.dicom import fetch_series, find_series

        if self.series is None:
            for one in find_series(self.server, study=self.study, modality=self.modality):
                print("  ".join((one["study"], one["series"], one["modality"], one["images"], one["description"])))
            return
        if self.study is None or self.out is None:
            raise UserError(
                "A series is fetched of a study, into a folder.", remedy="Add --study UID and --out FOLDER."
            )
        count = fetch_series(self.server, study=self.study, series=self.series, out=self.out)
        print(f"wrote {count:,} images to {self.out}")
