"""The service: embeddings and small-label probes over HTTP. Knows lejepa_med and data_adapters; neither knows it."""
