"""Training leaves the environment as it was."""

from ..training.conftest import same_environment  # noqa: F401 - for every test
