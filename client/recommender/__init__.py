"""What a platform's own people use: recommendations."""
