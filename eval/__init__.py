"""Measure the quality of a model: `python -m eval.generate`, then `python -m eval.score`."""
