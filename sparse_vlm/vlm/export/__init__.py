"""A whole VLM in ONNX, and a page that runs it in the browser. Needs the extras `vlm` and `export`."""
