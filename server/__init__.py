"""What runs at the coordinator: rounds, checkpoints and the registry of global models."""
