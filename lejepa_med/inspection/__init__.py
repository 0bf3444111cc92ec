"""The contact sheet: what an encoder really sees of an archive."""
