"""What everything else uses: errors, settings, logs, files that are written whole."""
