"""The encoders and probes that the service finds, keeps in memory and computes with."""
