"""What an operator of a platform types."""
