"""A chat in the browser that shows where the model attends. Run it from a clone: `python -m demo.app --model DIR`."""
