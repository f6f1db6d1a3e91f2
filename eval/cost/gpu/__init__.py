"""`make gpu`: what this project computes on a GPU, checked against the CPU, and what it costs; docs/gpu.md."""
