"""A model directory behind an OpenAI-compatible API: `sparse-vlm serve`. Needs fastapi and uvicorn."""
