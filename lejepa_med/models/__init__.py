"""Encoders (timm), the projector, and the encoder folder."""
