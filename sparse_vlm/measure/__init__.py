"""Shared parts of everything that measures cost: timing, operation counts, dense towers and LLM shapes."""
