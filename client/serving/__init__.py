"""Recommendations over HTTP to the platform's own programs, on this machine: events count at once, nothing is trained."""
