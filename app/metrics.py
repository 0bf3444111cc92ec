"""What the service counts, in Prometheus' terms. Other modules import the objects below and increment them.

Labels are words of our own vocabulary (route patterns, problem kinds, states), never a client's text: a path or a name
would leave the service with them, and each new one would cost memory for ever.
"""

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from lejepa_med import __version__

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

disable_created_metrics()  # a second series beside each counter, which nobody asks for
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # resident memory, CPU seconds, open file handles, start time

REQUEST_SECONDS = Histogram(
    "lejepa_request_seconds",
    "Seconds from a request's head to the end of its answer, without those that it asked to wait for a job.",
    ("method", "route", "status"),
    buckets=SECONDS,
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("lejepa_requests_in_flight", "Requests that are being answered.", registry=REGISTRY)
REJECTED = Counter("lejepa_rejected", "Requests answered with a problem, by its kind.", ("kind",), registry=REGISTRY)
EMBEDDED = Counter("lejepa_embedded_items", "Items (images, volumes, slides) that got a vector.", registry=REGISTRY)
BATCH_ITEMS = Histogram("lejepa_batch_items", "Items of one forward pass.", buckets=SIZES, registry=REGISTRY)
BATCH_IMAGES = Histogram(
    "lejepa_batch_images", "Slices, tiles or images of one forward pass.", buckets=SIZES, registry=REGISTRY
)
QUEUE_ITEMS = Gauge("lejepa_queue_items", "Items that wait for an encoder.", registry=REGISTRY)
QUEUE_SECONDS = Histogram(
    "lejepa_queue_wait_seconds", "Seconds that an item waited for its forward pass.", buckets=SECONDS, registry=REGISTRY
)
LOADED_ENCODERS = Gauge("lejepa_loaded_encoders", "Encoders in memory.", registry=REGISTRY)
WORKER_RESTARTS = Counter(
    "lejepa_worker_restarts", "Helping processes or threads that were started again.", ("worker",), registry=REGISTRY
)
Gauge("lejepa_build_info", "1; the version is a label.", ("version",), registry=REGISTRY).labels(__version__).set(1)


def saw_batch(*, images: int, waits: Sequence[float]) -> None:
    """Note that a batch leaves the queue for its forward pass.

    Args:
        images: slices, tiles or images in it.
        waits: seconds that each of its items waited.
    """
    QUEUE_ITEMS.dec(len(waits))
    BATCH_ITEMS.observe(len(waits))
    BATCH_IMAGES.observe(images)
    for seconds in waits:
        QUEUE_SECONDS.observe(seconds)


def method_word(method: str) -> str:
    """A request's method, or 'other' for words that HTTP does not have, which are the client's own."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"


def saw_request(*, method: str, route: str, status: int, seconds: float) -> None:
    """Note an answered request; `method` is a `method_word`, `route` the pattern of its path and never the path."""
    REQUEST_SECONDS.labels(method, route, f"{status // 100}xx").observe(seconds)
