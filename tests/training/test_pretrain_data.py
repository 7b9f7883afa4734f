"""Mixtures, curriculum and packing in real runs: the same on any number of processes and after any resume."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import set_seed

from ingot.data.assembly import collate
from ingot.loading import load_model, load_tokenizer
from ingot.recipe import InputError
from ingot.runs import describe_file, write_json
from ingot.training import pretrain_loop
from ingot.training.callbacks import Throughput, read_metrics
from ingot.training.pretrain_data import RunData
from ingot.training.pretrain_trainer import PretrainTrainer

from .conftest import Pretrain
from .pretrain_toys import SEQ_LENGTH, make_corpus, pretrain_recipe
from .test_pretrain import NO_EVALUATION, assert_equal, interrupt_at, lines_of

Weights = Callable[[Path], dict[str, torch.Tensor]]
STEPS, BLOCKS_PER_STEP = 12, 8
SCHEDULE = [{"seq_length": 8, "share": 0.25}, {"seq_length": 16, "share": 0.25}]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second, smaller corpus with the same tokenizer."""
    return make_corpus(tmp_path_factory.mktemp("small"), documents=10)


@pytest.fixture
def everything(corpus: Path, small: Path) -> dict[str, Any]:
    """Changes to the recipe: a mixture of two sources, shorter sequences first, best-fit packing."""
    mixture = [
        {"shards": str(corpus / "shards"), "weight": 0.75, "name": "large"},
        {"shards": str(small / "shards"), "weight": 0.25, "name": "small"},
    ]
    return {
        "data__shards": None, "data__mixture": mixture, "data__seq_length_schedule": SCHEDULE,
        "data__packing": "best_fit", "run__global_batch_size": BLOCKS_PER_STEP,
    }  # fmt: skip


@pytest.fixture
def data(corpus: Path, tmp_path: Path, everything: dict[str, Any]) -> RunData:
    """What such a recipe trains on."""
    recipe = pretrain_recipe(corpus, tmp_path / "run", **everything)
    return RunData(recipe.data, seed=3, num_blocks=STEPS * BLOCKS_PER_STEP, num_steps=STEPS)


def tokens_of_steps(data: RunData, processes: int, micro: int, skip: int = 0) -> list[list[list[int]]]:
    """The rows of every step as Trainer's loaders give them to the processes, sorted within the step."""
    steps: list[list[list[int]]] = [[] for _ in range(STEPS)]
    per_step = BLOCKS_PER_STEP // (processes * micro)
    for rank in range(processes):
        sampler = BatchSampler(SequentialSampler(data.train), micro, drop_last=False)  # type: ignore[arg-type]
        loader: Any = DataLoader(
            data.train, collate_fn=collate, batch_sampler=BatchSamplerShard(sampler, processes, rank)
        )  # type: ignore[arg-type]
        for number, batch in enumerate(skip_first_batches(loader, skip * per_step), start=skip * per_step):
            length = data.schedule.length_at(number // per_step)
            assert batch["input_ids"].shape == (micro * SEQ_LENGTH // length, length)
            tokens = [batch[key] for key in ("input_ids", "labels", "position_ids")]
            steps[number // per_step] += torch.cat(tokens, dim=1).tolist()
    return [sorted(rows) for rows in steps]


@pytest.mark.parametrize(("processes", "micro"), [(1, 2), (2, 4), (2, 1), (8, 1)])
def test_every_step_has_the_same_tokens_on_any_number_of_processes(data: RunData, processes: int, micro: int) -> None:
    expected = tokens_of_steps(data, 1, BLOCKS_PER_STEP)
    assert [len(rows) for rows in expected] == [8 * 4] * 3 + [8 * 2] * 3 + [8] * 6
    assert tokens_of_steps(data, processes, micro) == expected
    resumed = tokens_of_steps(data, processes, micro, skip=5)
    assert resumed[5:] == expected[5:] and resumed[:5] == [[]] * 5


def test_a_run_on_everything_reports_its_sources(pretrain: Pretrain, everything: dict[str, Any]) -> None:
    folder, results = pretrain(**everything)
    heldout = [line for line in read_metrics(folder / "metrics.jsonl") if "eval_loss" in line]
    for line in heldout:
        assert line["eval_loss"] == pytest.approx(0.75 * line["eval_loss_large"] + 0.25 * line["eval_loss_small"])
    assert results["heldout_loss"] == heldout[-1]["eval_loss"]
    sources = results["sources"]
    assert sources["small"]["heldout_loss"] == heldout[-1]["eval_loss_small"] != heldout[-1]["eval_loss_large"]
    assert sources["large"]["share_of_blocks"] == 0.75
    assert sources["small"]["epochs"] > 1 > sources["large"]["epochs"]
    assert 0 < results["padding_share"] < 0.1 and 0 < results["cut_documents_share"] < 1
    report = (folder / "report.md").read_text()
    assert "## Data" in report and "| small | 25.0% |" in report
    log = (folder / "log.txt").read_text()
    assert "small: 25.0% of the blocks" in log and "packing best_fit: " in log
    assert "sequence length: 8 tokens in steps 1-3, 16 tokens in steps 4-6, 32 tokens in steps 7-12" in log


def test_the_losses_of_a_mixture_are_those_of_its_sources(
    pretrain: Pretrain, everything: dict[str, Any], corpus: Path, small: Path
) -> None:
    folder, results = pretrain(**{**everything, "training__max_steps": 3})
    model = load_model(folder)
    for name, root in (("large", corpus), ("small", small)):
        recipe = pretrain_recipe(root, folder.parent / name)
        source = RunData(recipe.data, 0, 1, 1).sources[0].heldout
        nats = 0.0
        for i in range(len(source)):
            block = {k: torch.tensor(v)[None] for k, v in source[i].items()}
            with torch.no_grad():
                logits = model(block["input_ids"], position_ids=block["position_ids"], use_cache=False).logits
            nats += float(cross_entropy(logits[0, :-1], block["labels"][0, 1:], reduction="sum"))
        assert results["sources"][name]["heldout_loss"] == pytest.approx(nats / source.num_targets, abs=1e-5)


def test_an_interrupted_run_on_everything_ends_in_the_same_weights(
    pretrain: Pretrain, everything: dict[str, Any], monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    changes = {**everything, "training__per_device_train_batch_size": 2}
    whole, expected = pretrain(**changes)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            pretrain("interrupted", **changes)
    _, results = pretrain("interrupted", **changes)
    assert_equal(weights(whole.parent / "interrupted"), weights(whole))
    assert lines_of(whole.parent / "interrupted") == lines_of(whole)
    assert results["heldout_loss"] == expected["heldout_loss"]


def test_accumulated_batches_of_short_rows_are_one_batch(
    pretrain: Pretrain, everything: dict[str, Any], weights: Weights
) -> None:
    changes = {**everything, **NO_EVALUATION, "training__max_steps": 8}
    runs = [pretrain(f"run-{micro}", training__per_device_train_batch_size=micro, **changes)[0] for micro in (8, 1)]
    for line, wanted in zip(lines_of(runs[1]), lines_of(runs[0]), strict=True):
        assert line == pytest.approx(wanted, abs=3e-6)
    assert_equal(weights(runs[1]), weights(runs[0]), 2e-5)


def test_the_first_loss_of_short_rows_is_the_mean_over_their_labels(
    pretrain: Pretrain, corpus: Path, tmp_path: Path, everything: dict[str, Any]
) -> None:
    folder, _ = pretrain(**everything, **NO_EVALUATION)
    recipe = pretrain_recipe(corpus, tmp_path / "other", **everything)
    set_seed(1)
    model = pretrain_loop.build_model(recipe, load_tokenizer(corpus / "tokenizer")).eval()
    batch = collate([RunData(recipe.data, 1, STEPS * BLOCKS_PER_STEP, STEPS).train[i] for i in range(BLOCKS_PER_STEP)])
    assert batch["input_ids"].shape == (BLOCKS_PER_STEP * 4, 8)
    with torch.no_grad():
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert lines_of(folder)[0]["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_the_flops_of_a_span_are_those_of_its_steps() -> None:
    throughput = Throughput(100, lambda step: 10.0 if step < 3 else 20.0)
    assert throughput._flops(range(1, 3)) == 10 and throughput._flops(range(2, 6)) == 17.5
    assert Throughput(100, 7.0)._flops(range(3)) == 7


def test_training_and_evaluation_take_shapes_of_the_schedule(
    pretrain: Pretrain, everything: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    original = PretrainTrainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        assert "attention_mask" not in inputs
        return original(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(PretrainTrainer, "training_step", training_step)
    pretrain(**everything, **NO_EVALUATION)
    assert shapes == [(16, 8)] * 6 + [(8, 16)] * 6 + [(4, 32)] * 12


MIXTURE = [{"shards": "a", "weight": 1}, {"shards": "b/c", "weight": 2}]
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"shards": None}, "data.shards: missing; name an output folder of prepare_data, or several in data.mixture"),
    ({"mixture": MIXTURE}, "data.mixture: also data.shards is set; keep one of them"),
    ({"shards": None, "mixture": [*MIXTURE, {"shards": "d", "weight": 0.002}]}, "data.mixture.2.weight: 0.002 of 3"),
    ({"shards": None, "mixture": [*MIXTURE, {"shards": "a", "weight": 1}]}, "data.mixture.2.shards: a is in the"),
    ({"shards": None, "mixture": [*MIXTURE, {"shards": "d/c", "weight": 1}]}, "data.mixture.2.name: 'c' is also"),
    ({"shards": None, "mixture": [{**MIXTURE[0], "name": "a b"}]}, "data.mixture.0.name: 'a b' names a metric"),
    ({"shards": None, "mixture": [{"shards": "a", "weight": 0}]}, "data.mixture.0.weight: expected a number above 0"),
    ({"shards": None, "mixture": [{"shard": "a", "weight": 1}]}, "data.mixture.0.shard: no such key; did you mean"),
    ({"seq_length_schedule": [{"seq_length": 12, "share": 0.1}]}, "12 is no part of data.seq_length: 32; give 16"),
    ({"seq_length_schedule": [{"seq_length": 32, "share": 0.1}]}, "data.seq_length_schedule.0.seq_length: 32 is no"),
    ({"seq_length_schedule": [{"seq_length": 8, "share": 0.5}] * 2}, "its shares leave nothing to data.seq_length"),
    ({"packing": "bestfit"}, "data.packing: expected one of concatenate, best_fit, got 'bestfit'; did you mean"),
]


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS)
def test_a_wrong_recipe_is_told_before_anything_starts(
    changes: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        pretrain_recipe(corpus, tmp_path, **{f"data__{key}": value for key, value in changes.items()})
    assert message in str(caught.value)


def test_a_mixture_has_no_epochs(corpus: Path, tmp_path: Path) -> None:
    changes = {"training__max_steps": None, "training__num_train_epochs": 1}
    with pytest.raises(
        InputError, match=r"training\.max_steps: missing; the sources of a mixture do not end together"
    ):
        pretrain_recipe(corpus, tmp_path, data__shards=None, data__mixture=MIXTURE, **changes)


def test_epochs_of_best_fit_are_whole(pretrain: Pretrain, corpus: Path) -> None:
    changes = {"training__max_steps": None, "training__num_train_epochs": 2, "run__global_batch_size": 100}
    folder, results = pretrain(
        training__per_device_train_batch_size=50, data__packing="best_fit", **changes, **NO_EVALUATION
    )
    assert results["steps"] == math.ceil(2 * 185 / 100) and results["padding_share"] > 0
    assert read_metrics(folder / "metrics.jsonl")[-1]["epoch"] == pytest.approx(400 / 185, abs=0.1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer_sha256", "0" * 64, r"data\.mixture\.1\.shards: .* holds tokens of another tokenizer than model"),
        ("end_of_document", 7, r"data\.mixture\.1\.shards: the documents of .* end in token 7 and those of .* in 0"),
    ],
)
def test_sources_that_do_not_go_together_are_refused(
    key: str, value: Any, message: str, pretrain: Pretrain, corpus: Path, tmp_path: Path
) -> None:
    other = make_corpus(tmp_path / "other", documents=20) / "shards"
    description = json.loads((other / "data.json").read_text())
    write_json(other / "data.json", {**description, key: value})
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["data.json"] = describe_file(other / "data.json")
    write_json(other / "manifest.json", manifest)
    mixture = [{"shards": str(path), "weight": 1, "name": path.parts[-2]} for path in (corpus / "shards", other)]
    with pytest.raises(InputError, match=message):
        pretrain(data__shards=None, data__mixture=mixture)
