"""What an operator of the coordinator types."""
