"""What a run tells people and machines while it runs."""
