"""A chat in the browser that shows where the model looks. Run from a clone: `python demo/app.py --model DIR`."""
