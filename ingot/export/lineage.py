"""The runs that led to a folder, read from what each left behind."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.recipe_yaml import read_yaml
from ingot.runs import MANIFEST, fingerprint_folder, get_logger, read_json

logger = get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """One finished stage: its resolved recipe and its manifest."""

    folder: Path
    recipe: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def stage(self) -> str:
        """The name of the stage."""
        return str(self.manifest["stage"])

    def inputs(self) -> Iterator[tuple[Path, str]]:
        """The folders that the run read, with the fingerprint that each had then."""
        for key, fingerprint in self.manifest["inputs"].items():
            value: Any = self.recipe
            for part in key.split("."):
                value = value[int(part) if isinstance(value, list) else part]
            yield Path(value), fingerprint


def lineage(folder: Path) -> list[Run]:
    """A run and all runs before it, oldest first; empty for a folder that no stage wrote.

    An earlier folder that is gone or was made anew since is left out, with a warning.
    """
    found: dict[Path, Run] = {}
    _collect(folder, found)
    return list(found.values())


def _collect(folder: Path, found: dict[Path, Run]) -> None:
    if folder.resolve() in found or not (folder / MANIFEST).is_file():
        return
    run = Run(folder, read_yaml(folder / "recipe.yaml"), read_json(folder / MANIFEST))
    for path, fingerprint in run.inputs():
        if not path.is_dir():
            logger.warning("%s was made from %s, which is gone; the model card will not describe it", folder, path)
        elif fingerprint_folder(path) != fingerprint:
            logger.warning("%s changed after %s was made from it; the model card will not describe it", path, folder)
        else:
            _collect(path, found)
    found[folder.resolve()] = run
