"""A first platform file, drafted from the columns of a platform's tables."""
