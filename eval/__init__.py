"""Where a checkpoint's quality is measured: `python -m eval.generate`, then `python -m eval.score`."""
