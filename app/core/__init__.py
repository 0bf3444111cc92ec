"""What every part of the service uses: settings, errors, the data directory, limits, logs and metrics."""
