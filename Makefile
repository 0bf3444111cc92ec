# One environment, made on first use and kept; LEJEPA_VENV=/elsewhere shares one between checkouts.
PYTHON ?= python3
VENV ?= $(or $(LEJEPA_VENV),.venv)
BIN := $(VENV)/bin
READY := $(VENV)/.lejepa-med-ready

.PHONY: demo test test-postgres test-machines test-pages test-all dist check bench help clean

help:
	@echo "make demo    pretrain on a made archive (or ARCHIVE=... MODALITY=mri|histology|galaxy|images), probe it, serve it"
	@echo "make test    lint, types and tests"
	@echo "make test-dicomweb   DICOM objects through a real Orthanc"
	@echo "make test-postgres   the service's tests with PostgreSQL in place of SQLite"
	@echo "make test-machines   tests as on other processors: bf16 or none, AVX2 only, one core"
	@echo "make test-pages   the commands of README and of the walks in docs/, as they are printed"
	@echo "make check   lint and types only"
	@echo "make test-all   tests with the slow ones"
	@echo "make dist   a wheel and an sdist in dist/, each extra tried alone in an environment without the checkout"
	@echo "make bench   every number that the README quotes (hours)"

# The stamp is renewed when the dependencies change.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "lejepa-med needs Python 3.11 or newer; set PYTHON=python3.12 or so"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes and about 6 GB on first use: PyTorch)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m examples.demo.run $(if $(ARCHIVE),--archive "$(ARCHIVE)") $(if $(MODALITY),--modality "$(MODALITY)") $(DEMO)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# a process a core and one for the time that others wait, each of one thread; the tests of a file stay together, since
# they share what is costly to make
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --dist loadfile

test: check
	$(PYTEST) -m "not slow and not gpu and not pages"

# The service's tests of what is stored, once more with a real PostgreSQL (a wheel; nothing of the machine's own is used).
STORED := $(addprefix tests/app/,api jobs routes store vectors test_commands.py test_operations.py)

test-postgres: $(READY)
	$(PYTEST) -m "not slow and not gpu and not pages" --database postgres $(STORED)

# The tests once more as on other machines: one that has bf16 (emulated here), and a small one with AVX2 and one core.
# What depends on the processor must show in a setting that is saved, never in a result. Of the service and of the
# modalities those that compute or start processes: the rest does not depend on the processor.
MACHINES := tests/lejepa_med tests/examples $(addprefix tests/app/,encoders test_one_preprocessing.py \
  test_one_preprocessing_3d.py routes/test_archives.py routes/test_embeddings.py routes/test_probes.py)
ONE_CORE := $(MACHINES) $(addprefix tests/data_adapters/,augment readers scan)

test-machines: $(READY)
	LEJEPA_CPU_BF16=on $(PYTEST) -m "not slow and not gpu and not pages" $(MACHINES)
	LEJEPA_CPU_BF16=off ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	  $(PYTEST) -m "not slow and not gpu and not pages" --one-core $(ONE_CORE)

# DICOM objects through a real Orthanc on loopback (Debian's orthanc and orthanc-dicomweb); skipped with a reason without it.
test-dicomweb: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/lejepa_med/export/test_dicom.py

# The commands of README and of the walks in docs/, as they are printed there.
test-pages: $(READY)
	$(PYTEST) --dist load -m pages tests/pages

test-all: check
	$(PYTEST) -m "not gpu"

dist: $(READY)
	LEJEPA_DIST="$(CURDIR)/dist" $(PYTEST) -m slow tests/test_dist.py

bench: $(READY)
	$(BIN)/python -m benchmarks.sigreg --out benchmarks/results/sigreg-cpu.md
	$(BIN)/python -m benchmarks.scan --out benchmarks/results/scan-2-cores.md
	$(BIN)/python -m benchmarks.adapters --out benchmarks/results/adapters.md
	$(BIN)/python -m benchmarks.normality --out benchmarks/results/normality.md
	$(BIN)/python -m benchmarks.cpu_settings --out benchmarks/results/cpu-settings.md
	$(BIN)/python -m benchmarks.contention training --out benchmarks/results/contention-cpu.md
	$(BIN)/python -m benchmarks.contention embedding --out benchmarks/results/contention-embedding-cpu.md
	$(BIN)/python -m benchmarks.contention serving --out benchmarks/results/contention-serving-cpu.md
	$(BIN)/python -m benchmarks.train --out benchmarks/results/train-cpu.md
	$(BIN)/python -m benchmarks.minutes --out benchmarks/results/minutes-cpu.md
	$(BIN)/python -m benchmarks.search --out benchmarks/results/search-cpu.md
	$(BIN)/python -m benchmarks.lab_page --out benchmarks/results/lab-page.md
	$(BIN)/python -m benchmarks.stress.fuzz --out benchmarks/results/fuzz.md
	$(BIN)/python -m benchmarks.stress.soak --out benchmarks/results/soak.md
	$(BIN)/python -m benchmarks.transfer --data "$(LEJEPA_REAL_DATA)"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
