"""Checks and measurements of this project on a GPU, see docs/gpu.md; run by `make gpu`."""
