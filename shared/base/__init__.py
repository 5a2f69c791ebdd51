"""What every room stands on: errors, settings, logs, files that are written whole."""
