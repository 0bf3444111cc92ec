"""What an encoder is worth: probes on frozen embeddings, cross-validation by group, spectra and neighbours."""
