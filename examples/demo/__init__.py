"""The demo: a made archive in a real format becomes a pretrained encoder, a running service and a probe."""
