"""Counts and durations of requests, for Prometheus, under names like those of Triton Inference Server."""

from collections.abc import Sequence
from typing import Final

COUNTERS: Final = {
    "nv_inference_request_success": "Requests that were answered",
    "nv_inference_request_failure": "Requests that got an error from the network, or were given up",
    "nv_inference_count": "Images that the network computed",
    "nv_inference_exec_count": "Batches that the network computed",
    "nv_inference_request_duration_us": "Microseconds of requests from their first byte to the answer",
    "nv_inference_queue_duration_us": "Microseconds that requests waited for the network",
    "nv_inference_compute_infer_duration_us": "Microseconds that the network computed",
    "nv_model_restarts": "Starts of the network's process after a death",
}
PENDING: Final = "nv_inference_pending_request_count"


class Metrics:
    """Figures of each network.

    Args:
        names: of the networks.
    """

    def __init__(self, names: Sequence[str]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

        disable_created_metrics()
        self._registry = CollectorRegistry()
        labels = ("model", "version")
        self._counters = {
            name: Counter(name, text, labels, registry=self._registry) for name, text in COUNTERS.items()
        }
        self._pending = Gauge(PENDING, "Requests that wait for the network", labels, registry=self._registry)
        for name in names:
            for counter in self._counters.values():
                counter.labels(name, "1")
            self.pending(name, 0)

    def _add(self, counter: str, model: str, value: float = 1) -> None:
        self._counters[counter].labels(model, "1").inc(value)

    def pending(self, model: str, count: int) -> None:
        """Set how many requests wait."""
        self._pending.labels(model, "1").set(count)

    def computed(self, model: str, images: int, seconds: float) -> None:
        """Count a batch."""
        self._add("nv_inference_exec_count", model)
        self._add("nv_inference_count", model, images)
        self._add("nv_inference_compute_infer_duration_us", model, seconds * 1e6)

    def answered(self, model: str, total: float, queued: float) -> None:
        """Count a request that was answered, and its seconds."""
        self._add("nv_inference_request_success", model)
        self._add("nv_inference_request_duration_us", model, total * 1e6)
        self._add("nv_inference_queue_duration_us", model, queued * 1e6)

    def failed(self, model: str) -> None:
        """Count a request that was not."""
        self._add("nv_inference_request_failure", model)

    def restarted(self, model: str) -> None:
        """Count a start of a dead process."""
        self._add("nv_model_restarts", model)

    def text(self) -> tuple[bytes, str]:
        """The page for Prometheus, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
