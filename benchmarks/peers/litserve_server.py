"""LitServe in front of the same encoder: one worker, dynamic batching, as its documentation shows it.

python -m benchmarks.peers.litserve_server RUNS PORT THREADS
Source: lightning.ai/docs/litserve/features/batching
"""

import os
import sys
from typing import Any

import litserve as ls
from fastapi import Request

from benchmarks.serve_sides import decode, load

BATCH, WAIT = 64, 0.004  # our service's largest batch and longest wait


class Embed(ls.LitAPI):
    """Decode each, embed together, answer each."""

    def setup(self, device: str) -> None:
        """The encoder, once in the worker."""
        import cv2
        import torch

        torch.set_num_threads(int(sys.argv[3]))
        cv2.setNumThreads(int(sys.argv[3]))
        self.encoder = load(sys.argv[1])

    def decode_request(self, request: Request) -> Any:  # the annotation makes LitServe pass on the form
        """The file field of the form."""
        form: Any = request
        return decode(form["files"].file.read(), self.encoder.adapter.spec.embed_size)

    def batch(self, inputs: list[Any]) -> Any:
        """A list of items for the encoder."""
        return [item[None] for item in inputs]

    def predict(self, x: Any) -> Any:
        """Vectors of the batch."""
        return self.encoder.embed(x)

    def unbatch(self, output: Any) -> Any:
        """One vector each."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        """JSON of one vector."""
        return {"vector": output.tolist()}


if __name__ == "__main__":
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    api = Embed(max_batch_size=BATCH, batch_timeout=WAIT, api_path="/v1/embeddings")
    server = ls.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
