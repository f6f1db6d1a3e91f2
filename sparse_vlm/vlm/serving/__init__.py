"""An OpenAI-compatible API for a model directory: `sparse-vlm serve`. Needs fastapi and uvicorn."""
