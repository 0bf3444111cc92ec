"""Similarity search over embedding tables: `base` answers exactly, `conditions` narrows, `find` is the command."""
