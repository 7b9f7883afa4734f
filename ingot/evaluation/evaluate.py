"""The evaluate stage: several models on the same held-out text, the same tasks and the same prompts."""

import gc
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ingot.evaluation.continuation import write_task
from ingot.evaluation.documents import Document, read_documents
from ingot.evaluation.harness import HarnessOptions, load_tasks, run_tasks, task_files
from ingot.evaluation.perplexity import beginning_token, compressed, score_documents, window_lengths
from ingot.evaluation.prompts import PROMPTS, Generation, answer_prompts
from ingot.evaluation.report import Evaluation, Scores, write_report
from ingot.loading import load_model, load_tokenizer
from ingot.recipe import FilePath, InputError, Recipe, Section, StageFolder
from ingot.runs import MANIFEST, get_logger, num_processes, open_run, progress, read_json, versions, write_json
from ingot.vocabulary import check_pair, embedding_rows

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = get_logger(__name__)


class ModelSection(Section):
    """The models to compare."""

    candidates: dict[str, Annotated[FilePath, StageFolder("pretrain", "sft", "dpo", hub=True)]] = Field(
        description="name -> run folder or Hub folder"
    )
    raw_text: list[str] | None = Field(
        None,
        description="models that continue plain text; unset: those of pretrain and those without a chat template",
    )


class DataSection(Section):
    """What to measure them on."""

    documents: Annotated[FilePath, StageFolder("prepare_data")] = Field(description="folder with held-out documents")
    split: Literal["test", "validation"] = Field("test", description="which held-out documents")
    continuation_rows: int = Field(200, ge=0, description="questions made from the documents: what comes next?")
    tasks: list[FilePath] = Field([], description="lm-eval task files (.yaml), or folders of them")


class PerplexitySection(Section):
    """How held-out text is scored."""

    seq_length: int | None = Field(None, gt=1, description="window in tokens; unset: the model's longest")
    stride: int | None = Field(None, gt=0, description="tokens that the window moves by; unset: half of it")
    batch_size: int = Field(8, gt=0, description="windows at a time; fewer where the vocabulary is large")
    bf16: bool = Field(False, description="score text and tasks in bfloat16 autocast")


class HarnessSection(Section):
    """How lm-eval asks its tasks."""

    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; unset: as the task says")
    limit: int | None = Field(None, gt=0, description="rows of each task, from its start; unset: all")
    batch_size: int = Field(8, gt=0, description="requests at a time")
    apply_chat_template: bool = Field(False, description="ask the chat models through their template")


class GenerationSection(Section):
    """The prompts that the models answer side by side."""

    prompts: list[str] = Field(PROMPTS, description="the prompts")
    max_new_tokens: int = Field(64, gt=0, description="tokens of an answer")
    temperature: float = Field(0.0, ge=0, description="0 takes the most likely token each time")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens with this total probability")
    seed: int = Field(0, ge=0, description="seed of the drawing")


class EvaluateRecipe(Recipe, stage="evaluate"):
    """Measures models on held-out text, tasks and prompts, and writes report.md with plots."""

    model: ModelSection
    data: DataSection
    perplexity: PerplexitySection = PerplexitySection.model_validate({})
    harness: HarnessSection = HarnessSection.model_validate({})
    generation: GenerationSection = GenerationSection.model_validate({})

    def source_files(self) -> Iterator[Path]:
        """The task files."""
        yield from task_files(self.data.tasks)

    def problems(self) -> Iterator[str]:
        """Names that cannot be used and tasks that are not there."""
        names = set(self.model.candidates)
        if not names:
            yield "model.candidates: name at least one model, such as base: runs/quickstart/pretrain"
        for name in sorted(names):
            if name in ("xz", "bz2") or not re.fullmatch(r"[\w.-]+", name):
                yield f"model.candidates: '{name}' cannot name a model; use letters, digits, '_', '-' (not xz or bz2)"
        for name in sorted(set(self.model.raw_text or []) - names):
            yield f"model.raw_text: '{name}' is not one of model.candidates ({', '.join(sorted(names))})"
        try:
            task_files(self.data.tasks)
        except InputError as error:
            yield str(error)


def run(recipe: EvaluateRecipe) -> dict[str, Any]:
    """Evaluates every candidate; the results are `<name>.bits_per_byte` and more, and the same of xz and bz2."""
    if num_processes() > 1:
        raise InputError("evaluate runs in one process; start it without accelerate launch or torchrun")
    with open_run(recipe) as folder:
        if folder.complete:
            return folder.results
        documents = read_documents(recipe.data.documents, recipe.data.split)
        manager, tasks = prepare_tasks(recipe, documents, folder.path)
        scores = {}
        for name in recipe.model.candidates:
            scores[name] = _scores_of(name, recipe, documents, manager, tasks, folder.path)
            logger.info("%s: %s", name, _one_line(scores[name]))
        sizes = compressed(documents)
        logger.info("%s", ", ".join(f"{k} -9: {v['bits_per_byte']:.3f} bits per byte" for k, v in sizes.items()))
        write_report(Evaluation(scores, recipe.model.candidates, sizes, _conditions(recipe)), folder.path)
        return folder.finish({**{name: s.results for name, s in scores.items()}, **sizes, "report": "report.md"})


def _one_line(scores: Scores) -> str:
    tasks = [
        f", {task} {result['acc']:.3f} (chance {result['chance']:.3f})"
        for task, result in scores.results["tasks"].items()
        if "acc" in result and "chance" in result
    ]
    return f"{scores.results['bits_per_byte']:.3f} bits per byte" + "".join(tasks)


def prepare_tasks(
    recipe: EvaluateRecipe, documents: list[Document], folder: Path
) -> "tuple[TaskManager | None, list[str]]":
    """The tasks of the recipe and the one made from the held-out documents, ready for lm-eval."""
    files = task_files(recipe.data.tasks)
    if recipe.data.continuation_rows:
        files.insert(0, write_task(documents, recipe.data.continuation_rows, folder / "tasks"))
    return load_tasks(files) if files else (None, [])


def _scores_of(
    name: str,
    recipe: EvaluateRecipe,
    documents: list[Document],
    manager: "TaskManager | None",
    tasks: list[str],
    folder: Path,
) -> Scores:
    """The scores of one model; those that an interrupted run has written are read back."""
    file = folder / "scores" / f"{name}.json"
    if file.is_file():
        return Scores(**read_json(file))
    file.parent.mkdir(exist_ok=True)
    candidate = Candidate(name, recipe)
    scores = candidate.scores(documents, manager, tasks, folder / "scores" / f"{name}_samples.jsonl")
    write_json(file, asdict(scores))
    del candidate
    gc.collect()
    return scores


class Candidate:
    """A loaded model with how it is to be measured."""

    def __init__(self, name: str, recipe: EvaluateRecipe) -> None:
        import torch

        path = recipe.model.candidates[name]
        self.name, self.recipe = name, recipe
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(path)
        self.model: PreTrainedModel = load_model(path)
        check_pair(self.tokenizer, embedding_rows(self.model), f"model.candidates.{name}: {path}")
        self.model.to(accelerator or torch.device("cpu"))  # type: ignore[arg-type]
        self.chat = is_chat(name, path, recipe.model.raw_text, self.tokenizer)
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.seq_length, self.stride = window_lengths(longest, recipe.perplexity.seq_length, recipe.perplexity.stride)

    def scores(
        self, documents: list[Document], manager: "TaskManager | None", tasks: list[str], samples: Path
    ) -> Scores:
        """Measures the model on the documents, the tasks and the prompts."""
        started = time.monotonic()
        with self._precision():
            text = score_documents(
                self.model, self.tokenizer, documents, self.seq_length, self.stride,
                self.recipe.perplexity.batch_size, self.name,
            )  # fmt: skip
            scored = time.monotonic()
            found = {}
            if manager is not None:
                found = run_tasks(self.model, self.tokenizer, manager, tasks, self._harness(), samples)
        asked = time.monotonic()
        prompts = self.recipe.generation.prompts
        generation = Generation(**self.recipe.generation.model_dump(exclude={"prompts"}))
        answers = answer_prompts(self.model, self.tokenizer, prompts, generation, self.chat)
        answers = progress(answers, total=len(prompts), desc=f"{self.name}: prompts")
        records = [asdict(answer) for answer in answers]
        seconds = (scored - started, asked - scored, time.monotonic() - asked)
        return Scores({**text.results(), "tasks": found}, records, self._about(seconds))

    def _precision(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.recipe.perplexity.bf16)

    def _harness(self) -> HarnessOptions:
        options = self.recipe.harness
        return HarnessOptions(
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            batch_size=options.batch_size,
            max_length=self.seq_length,
            apply_chat_template=options.apply_chat_template and self.chat,
        )

    def _about(self, seconds: tuple[float, float, float]) -> dict[str, Any]:
        model = self.model
        return {
            "folder": str(self.recipe.model.candidates[self.name]),
            "architecture": type(model).__name__,
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "vocabulary_rows": model.config.get_text_config().vocab_size,
            "window_in_tokens": self.seq_length,
            "stride_in_tokens": self.stride,
            "beginning_of_text_token": beginning_token(self.tokenizer) is not None,
            "chat": self.chat,
            "seconds_held_out_text": seconds[0],
            "seconds_tasks": seconds[1],
            "seconds_prompts": seconds[2],
        }


def is_chat(name: str, path: Path, raw_text: list[str] | None, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a model answers through its chat template.

    Raises: InputError when it should and has no template.
    """
    has_template = bool(tokenizer.chat_template)
    if raw_text is not None:
        if name not in raw_text and not has_template:
            raise InputError(f"model.raw_text: {name} ({path}) has no chat template; add '{name}' to the list")
        return name not in raw_text
    record = (path.resolve().parent if path.resolve().name == "model" else path) / MANIFEST
    return has_template and not (record.is_file() and read_json(record)["stage"] == "pretrain")


def _conditions(recipe: EvaluateRecipe) -> dict[str, Any]:
    """Versions and settings that every model shares."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {
        "documents": f"{recipe.data.documents} ({recipe.data.split})",
        "device": "cpu" if accelerator is None else accelerator.type,
        "bf16_autocast": recipe.perplexity.bf16,
        "temperature": recipe.generation.temperature,
        "seed": recipe.generation.seed,
        **versions(),
    }
