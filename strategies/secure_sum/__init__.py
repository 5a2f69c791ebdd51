"""The coordinator's part in the secure sum."""
