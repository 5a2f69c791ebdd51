"""From files and databases to a platform's tables."""
