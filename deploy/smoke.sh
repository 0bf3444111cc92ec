#!/bin/sh
# Smoke test of the image: over a small archive that is mounted read-only it pretrains, embeds, trains a probe, serves,
# and asks the service for vectors and predictions, all with the engine's own /dev/shm (64 MB in Docker) and no network.
#   deploy/smoke.sh                       lejepa-med:cpu with Docker
#   RUN="podman run --rm" deploy/smoke.sh IMAGE
# It ends with "smoke test passed" and exit status 0, or at the first command that fails.
set -eu
RUN=${RUN:-docker run --rm --network none}
IMAGE=${1:-lejepa-med:cpu}
here=$(cd "$(dirname "$0")" && pwd)

if [ "$IMAGE" != --inside ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  mkdir "$scratch/archive" "$scratch/smoke"
  chmod -R 777 "$scratch" # the image's user is another one
  mounts="-v $here/smoke.sh:/smoke.sh:ro -v $scratch/smoke:/smoke"
  # shellcheck disable=SC2086 # both hold several words
  $RUN $mounts -v "$scratch/archive:/archive" "$IMAGE" sh /smoke.sh --inside make
  # shellcheck disable=SC2086
  $RUN $mounts -v "$scratch/archive:/archive:ro" "$IMAGE" sh /smoke.sh --inside test
  exit
fi

if [ "$2" = make ]; then
  exec python - <<'MAKE'
import csv
import numpy as np
from PIL import Image
rng = np.random.default_rng(0)
with open("/archive/labels.csv", "w", newline="") as stream:
    table = csv.writer(stream)
    table.writerow(["path", "label", "group"])
    for index in range(128):
        label = ("dark", "bright")[index % 2]
        pixels = rng.normal((90, 160)[index % 2], 30, (256, 256, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(f"/archive/{index:03d}.png")
        table.writerow([f"{index:03d}.png", label, f"g{index // 2}"])
MAKE
fi

set -x
df -h /dev/shm
id -u
# 8 workers with 2 batches of 4.8 MB each: more than 64 MB of shared memory would hold
lejepa-med pretrain /archive --modality images --catalog /archive/labels.csv --out /smoke/runs/smoke \
  --backbone resnet10t --views.n-global 2 --views.n-local 0 --views.global-size 112 --batch-size 64 \
  --epochs 1 --train.log-every 1 --train.precision 32-true --data.workers 8 --no-monitor.online
lejepa-med embed /smoke/runs/smoke /archive --catalog /archive/labels.csv --out /smoke/runs/vectors
lejepa-med probe /smoke/runs/vectors /archive/labels.csv --archive /archive --out /smoke/probe
lejepa-med serve /smoke/runs --data-dir /smoke/data --auth off --port 8000 &
service=$!
trap 'kill -KILL $service 2> /dev/null || true' EXIT
python - <<'ASK'
import time
from lejepa_med.client import Client
with Client("http://127.0.0.1:8000") as client:
    end = time.monotonic() + 120
    while not client.is_ready() and time.monotonic() < end:
        time.sleep(0.5)
    files = [f"/archive/{index:03d}.png" for index in range(40)]
    vector = client.embed(files[0]).items[0].vector
    assert len(vector) == 512, len(vector)
    labels = [("dark", "bright")[index % 2] for index in range(40)]
    job = client.wait(client.train_probe(files, labels, groups=[f"g{index // 2}" for index in range(40)]), timeout=300)
    predicted = [item.label for item in client.predict_files(job.id, files[:4])]
    print("a vector of", len(vector), "numbers; predicted:", *predicted)
    assert predicted == labels[:4], predicted
ASK
kill -TERM $service
wait $service
set +x
echo "smoke test passed"
