"""The platform's part in the secure sum."""
