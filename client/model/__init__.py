"""The two towers on a platform's items and users."""
