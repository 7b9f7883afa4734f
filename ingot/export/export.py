"""The export stage: a finished model as a Hub folder with a model card, published only when it is proved equal."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ingot.export.card import CardText, Evaluated, Facts, write_card
from ingot.export.convert import checkpoint_to_hub, is_checkpoint
from ingot.export.hub import save_hub_folder, uses_remote_code
from ingot.export.lineage import lineage
from ingot.export.verify import verify_export
from ingot.integrity import NOT_RECORDED
from ingot.loading import load_model, load_tokenizer
from ingot.recipe import FilePath, InputError, Recipe, RunSection, Section, StageFolder
from ingot.runs import (
    MANIFEST,
    fingerprint_folder,
    get_logger,
    num_processes,
    open_run,
    read_json,
    versions,
    write_checksums,
)

logger = get_logger(__name__)


class ExportRun(RunSection):
    """What is exported, and where to."""

    from_: Annotated[FilePath, StageFolder("dpo", "sft", "pretrain", hub=True)] = Field(
        alias="from", description="run folder or Hub folder of the model, or a run's checkpoint: RUN/checkpoint-N"
    )


class CardSection(Section):
    """What the model card says beside what the runs tell."""

    title: str | None = Field(None, description="name of the model; unset: the name of the folder")
    language: list[str] = Field([], description="language codes, such as en")
    license: str | None = Field(None, description="licence of the weights, such as apache-2.0")
    description: str | None = Field(None, description="first paragraph of the card")
    evaluation: Annotated[FilePath, StageFolder("evaluate")] | None = Field(
        None, description="run folder of an evaluation, for the card's numbers"
    )


class ExportRecipe(Recipe, stage="export"):
    """Writes a model as a Hub folder that loads anywhere, with a model card, and proves it equal to its source."""

    run: ExportRun
    card: CardSection = CardSection.model_validate({})


def run(recipe: ExportRecipe) -> dict[str, Any]:
    """Exports the model; the results are the path of the Hub folder and what was proved of it."""
    if num_processes() > 1:
        raise InputError("export runs in one process; start it without accelerate launch or torchrun")
    with open_run(recipe) as folder:
        if folder.complete:
            return folder.results
        source, target = _hub_source(recipe.run.from_, folder.path / ".checkpoint"), folder.path / "model"
        partial = folder.path / ".partial"  # becomes `model` when it is proved equal
        shutil.rmtree(partial, ignore_errors=True)
        counts = _write(source, partial)
        logger.info("export: comparing %s with a load in a clean process", source)
        difference = verify_export(source, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        shutil.rmtree(folder.path / ".checkpoint", ignore_errors=True)
        write_checksums(target, NOT_RECORDED)  # a copy elsewhere is verified too
        write_card(_facts(recipe, target, counts, difference))
        return folder.finish(
            {
                "path": str(target),
                **counts,
                "bytes": sum(p.stat().st_size for p in target.rglob("*") if p.is_file()),
                "max_logit_difference": difference,
                "remote_code": uses_remote_code(target),
            }
        )


def _hub_source(path: Path, staging: Path) -> Path:
    """The path itself, or for a run's checkpoint a Hub folder made of it."""
    if not is_checkpoint(path):
        return path
    logger.info("export: putting the weights of %s together", path)
    return checkpoint_to_hub(path, staging)


def _write(source: Path, target: Path) -> dict[str, int]:
    """Writes the Hub folder; returns the numbers of parameters, which need the loaded model."""
    model: Any = load_model(source)
    save_hub_folder(model, load_tokenizer(source), target)
    embeddings = {
        id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    return {"parameters": model.num_parameters(), "embedding_parameters": sum(embeddings.values())}


def _facts(recipe: ExportRecipe, target: Path, counts: Mapping[str, int], difference: float) -> Facts:
    card = recipe.card
    return Facts(
        text=CardText(card.title or recipe.run.dir.resolve().name, card.language, card.license, card.description),
        folder=target,
        num_parameters=counts["parameters"],
        num_embedding=counts["embedding_parameters"],
        runs=lineage(recipe.run.from_),
        evaluated=evaluation_of(card.evaluation, recipe.run.from_) if card.evaluation else None,
        versions=versions(),
        max_difference=difference,
    )


def evaluation_of(evaluation: Path, source: Path) -> Evaluated:
    """An evaluation's results, and the name under which it measured the model of this very content."""
    manifest = read_json(evaluation / MANIFEST)
    wanted, prefix = fingerprint_folder(source), "model.candidates."
    names = [k.removeprefix(prefix) for k, v in manifest["inputs"].items() if k.startswith(prefix) and v == wanted]
    if not names:
        logger.warning("card.evaluation: %s did not measure %s; the card says so", evaluation, source)
    return Evaluated(evaluation, manifest["results"], names[0] if names else None)
