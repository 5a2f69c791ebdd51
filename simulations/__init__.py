"""Virtual worlds, the in-process run and the benchmarks."""
