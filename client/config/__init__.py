"""What operators write: the platform file, its terms, its folder."""
