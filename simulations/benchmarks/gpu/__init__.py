"""What `simulations/benchmarks/gpu.sh` runs on a machine with a GPU, a step at a time."""
