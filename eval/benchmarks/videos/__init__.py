"""Benchmarks about videos, multiple choice, in their official formats."""
