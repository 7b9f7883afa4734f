"""The data of a pretraining run: what it trains on in which order, what is held out, and what is said of both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ingot.data.assembly import Blocks
from ingot.data.best_fit import BestFitBlocks
from ingot.data.curriculum import CurriculumBlocks, LengthSchedule
from ingot.data.mixture import Assignment, MixtureBlocks
from ingot.data.packing import EvaluationBlocks, TokenBlocks
from ingot.recipe import InputError
from ingot.runs import get_logger
from ingot.training.pretrain import PretrainData
from ingot.vocabulary import Shards

logger = get_logger(__name__)


@dataclass(frozen=True)
class Source:
    """One folder of shards with its share of the blocks; `name` is empty when it is the only one."""

    key: str  # of the recipe
    folder: Path
    name: str
    share: float
    train: TokenBlocks | BestFitBlocks
    heldout: EvaluationBlocks
    padding: float  # share of the tokens in its blocks
    cut_documents: float  # share of its documents


@dataclass(frozen=True)
class HeldOut:
    """The held-out blocks of every source with its share."""

    sources: Sequence[Source]

    @property
    def bytes_per_target(self) -> float:
        """Bytes of text for every label that counts, in the proportions of the mixture."""
        return sum(source.share * source.heldout.bytes_per_target for source in self.sources)

    def metrics(self, losses: Sequence[float], prefix: str) -> dict[str, float]:
        """The loss of the mixture, and of each source when there are several, from those of the sources in order."""
        total = sum(source.share * loss for source, loss in zip(self.sources, losses, strict=True))
        named = {f"{prefix}_loss_{s.name}": loss for s, loss in zip(self.sources, losses, strict=True) if s.name}
        return {f"{prefix}_loss": total, **named}

    def check_best(self, wanted: str | None) -> None:
        """Raises: InputError when the best model is to be chosen by what no evaluation gives."""
        found = list(self.metrics([0.0] * len(self.sources), "eval"))
        if wanted is not None and wanted not in (*found, *(name.removeprefix("eval_") for name in found)):
            raise InputError(
                f"training.metric_for_best_model: '{wanted}' is none of {', '.join(found)} (bits per byte are "
                "these in another unit)"
            )


class RunData:
    """Training blocks in the order in which they are read, and the held-out blocks of every source.

    Raises: InputError for shards that are not there, are too short for a block, or do not go together.
    """

    def __init__(self, data: PretrainData, seed: int, num_blocks: int, num_steps: int) -> None:
        self.seq_length, self.num_blocks, self.packing = data.seq_length, num_blocks, data.packing
        weights = [source.weight for _, source in data.sources()]
        self.sources = list(_sources(data, Assignment(weights, seed), num_blocks, seed))
        self._check_ends()
        self.heldout = HeldOut(self.sources)
        self.schedule = LengthSchedule(data.length_shares()[:-1], data.seq_length, num_steps)
        blocks: Blocks = self.sources[0].train
        if len(weights) > 1:
            blocks = MixtureBlocks([source.train for source in self.sources], weights, seed, num_blocks)
        self.train: Blocks | CurriculumBlocks = blocks
        if data.seq_length_schedule:
            self.train = CurriculumBlocks(blocks, self.schedule, num_blocks // num_steps)

    @property
    def num_tokens(self) -> int:
        """Training tokens of all sources, once."""
        return sum(source.train.shards.num_tokens for source in self.sources)

    @property
    def epochs(self) -> float:
        """Passes over the training tokens of all sources."""
        return sum(source.train.epochs * source.train.shards.num_tokens for source in self.sources) / self.num_tokens

    @property
    def shards(self) -> list[Shards]:
        """What the model's tokenizer is held against."""
        return [Shards(s.key, s.folder, s.train.shards.description["tokenizer_sha256"]) for s in self.sources]

    def _check_ends(self) -> None:
        """Raises: InputError when the documents of two sources end in different tokens."""
        ends = [source.train.shards.end_of_document for source in self.sources]
        for source, end in zip(self.sources, ends, strict=True):
            if end != ends[0]:
                raise InputError(
                    f"{source.key}: the documents of {source.folder} end in token {end} and those of "
                    f"{self.sources[0].folder} in {ends[0]}; run prepare_data with the same data.end_of_document"
                )

    def describe(self) -> None:
        """Says how the blocks are mixed, packed and cut."""
        for source in self.sources:
            if source.name:
                logger.info(
                    "%s: %.1f%% of the blocks, %.2f epochs of %s tokens", source.name, 100 * source.share,
                    source.train.epochs, f"{source.train.shards.num_tokens:,}",
                )  # fmt: skip
        padding, cut = 100 * self.share_of("padding"), 100 * self.share_of("cut_documents")
        logger.info("packing %s: %.2f%% padding, %.1f%% of the documents cut", self.packing, padding, cut)
        phases = list(self.schedule.phases())
        if len(phases) > 1:
            parts = [f"{length} tokens in steps {begin + 1}-{end}" for length, begin, end in phases]
            logger.info("sequence length: %s", ", ".join(parts))

    def share_of(self, what: Literal["padding", "cut_documents"]) -> float:
        """A share over all sources, in the proportions of the mixture."""
        return sum(source.share * float(getattr(source, what)) for source in self.sources)

    def results(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """Padding, cut documents and, for a mixture, its sources with their held-out losses."""
        found: dict[str, Any] = {f"{k}_share": round(self.share_of(k), 6) for k in ("padding", "cut_documents")}
        if len(self.sources) > 1:
            found["sources"] = {
                source.name: {
                    "share_of_blocks": round(source.share, 6), "epochs": round(source.train.epochs, 4),
                    "padding_share": round(source.padding, 6), "cut_documents_share": round(source.cut_documents, 6),
                    "heldout_loss": evaluation[f"eval_loss_{source.name}"],
                }
                for source in self.sources
            }  # fmt: skip
        return found


def _sources(data: PretrainData, assignment: Assignment, num_blocks: int, seed: int) -> Iterator[Source]:
    """Every source of the recipe.

    Raises: InputError when one has less than a block.
    """
    given, counts = data.sources(), assignment.counts(num_blocks)
    for (key, source), share, count in zip(given, assignment.shares, counts, strict=True):
        train = training_blocks(data, source.shards, seed, max(1, count))
        if train.blocks_per_epoch < 1:
            tokens = f"the {train.shards.num_tokens} training tokens of {source.shards}"
            raise InputError(f"data.seq_length: {data.seq_length} is more than {tokens}")
        heldout, shares = EvaluationBlocks(source.shards, "validation", data.seq_length), train.packing_shares()
        name = source.label if len(given) > 1 else ""
        yield Source(key, source.shards, name, share, train, heldout, shares["padding"], shares["cut_documents"])


def training_blocks(
    data: PretrainData, folder: Path, seed: int, num_blocks: int | None = None
) -> TokenBlocks | BestFitBlocks:
    """The blocks of one folder, packed as the recipe says; `num_blocks`: unset, those of one epoch."""
    packed = BestFitBlocks if data.packing == "best_fit" else TokenBlocks
    return packed(folder, "train", data.seq_length, seed, num_blocks)


def data_report(results: dict[str, Any]) -> str:
    """A section of the report on packing and sources, as Markdown."""
    padding, cut = results["padding_share"], results["cut_documents_share"]
    text = f"## Data\n\nPadding: {padding:.3%} of the blocks. Documents that are cut: {cut:.1%}."
    if "sources" not in results:
        return text
    rows = ["| source | share of blocks | epochs | padding | cut documents | held-out loss |", "|---|" + "---:|" * 5]
    for name, n in results["sources"].items():
        cells = [f"{n['share_of_blocks']:.1%}", f"{n['epochs']:.2f}", f"{n['padding_share']:.3%}"]
        cells += [f"{n['cut_documents_share']:.1%}", f"{n['heldout_loss']:.4f}"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return text + "\n\n" + "\n".join(rows)
