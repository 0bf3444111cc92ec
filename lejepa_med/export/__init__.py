"""Encoders, probes, tables and predictions in the formats of other tools."""
