"""For every test: no hub, few threads, upstream quiet."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

ROOT = Path(__file__).parent.parent


@pytest.fixture
def root() -> Path:
    """The project's folder."""
    return ROOT
