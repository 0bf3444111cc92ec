# lejepa-med as a service over a mounted runs directory. Everything is installed at build time; nothing is fetched at start.
#   CPU (default):  docker build -t lejepa-med .
#   GPU:            docker build -t lejepa-med:gpu --build-arg DEVICE=gpu .
# Another Python from 3.11 on:  --build-arg PYTHON=3.13
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build

# cpu or gpu. PyTorch on PyPI is the CUDA build (about 6 GB), so the CPU build comes from PyTorch's own index.
ARG DEVICE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/lejepa-med
ENV PATH=/opt/lejepa-med/bin:$PATH

# The large layer first: it changes only with these two bounds, which are those of pyproject.toml.
SHELL ["/bin/bash", "-o", "errexit", "-o", "nounset", "-c"]
# Bounds and not pins, as in pyproject.toml.
# hadolint ignore=DL3013
RUN case "$DEVICE" in \
      cpu) pip install --index-url "$TORCH_INDEX" "torch>=2.8" "torchvision>=0.23" ;; \
      gpu) pip install "torch>=2.8" "torchvision>=0.23" ;; \
      *) echo "DEVICE is cpu or gpu, not '$DEVICE'" >&2; exit 1 ;; \
    esac

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY data_adapters data_adapters
COPY lejepa_med lejepa_med
COPY app app
# hadolint ignore=DL3013
RUN pip install ".[mri,histology,galaxy,serve,postgres]"


FROM python:${PYTHON}-slim-bookworm

RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin lejepa \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data \
    && install --directory /runs
COPY --from=build /opt/lejepa-med /opt/lejepa-med

# Caches go to /tmp, so that the root file system may be read-only. XDG_DATA_HOME keeps the salt of pseudonyms.
ENV PATH=/opt/lejepa-med/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NO_ALBUMENTATIONS_UPDATE=1 HF_HUB_OFFLINE=1 \
    HOME=/tmp XDG_CACHE_HOME=/tmp MPLCONFIGDIR=/tmp XDG_DATA_HOME=/data \
    LEJEPA_DATA_DIR=/data LEJEPA_AUTH=on
VOLUME ["/runs", "/data"]
EXPOSE 8000
USER 10001:10001

HEALTHCHECK --interval=30s --timeout=5s --start-period=90s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

# Every request needs a key from the first start on. Make one in the running container:
#   docker exec CONTAINER lejepa-med key create NAME --scopes admin
CMD ["lejepa-med", "serve", "/runs", "--host", "0.0.0.0", "--port", "8000"]
