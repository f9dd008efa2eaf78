"""HTTP: OpenAI's routes, health and metrics, on Starlette and uvicorn."""
