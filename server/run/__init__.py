"""One run at the coordinator: who is there, its rounds, its checkpoints."""
