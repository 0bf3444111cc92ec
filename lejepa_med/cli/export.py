"""Commands that take encoders and results to other tools: export, latency. Heavy imports wait for the command."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.cli.settings import make_console
from lejepa_med.config import Columns, Section
from lejepa_med.errors import UserError


class ExportCommand(Section):
    """Write an encoder, with or without a probe, in the format of another tool. The ending of --out chooses it.

    .onnx: normalisation, views, encoder and probe as one graph, compared with PyTorch on real images before it is kept.
    """

    source: CliPositionalArg[Path] = Field(description="run folder, or its encoder folder")
    out: Path = Field(description="file to write: .onnx")
    probe: Path | None = Field(default=None, description="probe folder of: lejepa-med probe")
    images: Path | None = Field(
        default=None, description=".onnx: folder or manifest of images to compare on; None: the run's own"
    )
    bound: float = Field(
        default=1e-4, gt=0, description=".onnx: largest difference from PyTorch; above it nothing is written"
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        formats = {".onnx": self._onnx}
        if self.out.suffix.lower() not in formats:
            raise UserError(
                f"--out {self.out} ends in no format that export writes.",
                remedy=f"Give a file that ends in {', '.join(formats)}.",
            )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        formats[self.out.suffix.lower()]()

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
