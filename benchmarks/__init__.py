"""Every number that the documentation quotes, by a command."""
