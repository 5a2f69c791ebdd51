"""From a platform's tables to user examples and token sequences."""
