"""Preference training raises the margin on pairs it has not seen, against the reference that it says it uses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ingot.loading import load_model, load_tokenizer
from ingot.recipe import InputError, build_recipe
from ingot.training import adapters, dpo, finetune, heldout, sft
from ingot.training.encoding import IGNORED, ConversationEncoder

from .finetune_toys import dpo_recipe, make_start, sft_recipe, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="module")
def tuned(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sft run."""
    folder = tmp_path_factory.mktemp("runs")
    sft.run(sft_recipe(folder / "sft", make_start(folder / "start"), rows))
    return folder / "sft"


@pytest.fixture(scope="module")
def finished(tuned: Path, rows: Path) -> tuple[Path, dict[str, Any]]:
    run_dir = tuned.parent / "dpo"
    return run_dir, dpo.run(dpo_recipe(run_dir, tuned, rows))


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    sides = {"chosen": chosen, "rejected": rejected}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": [{"role": "user", "content": prompt}], **answers}


def test_margin_rises_on_held_out_pairs(finished: tuple[Path, dict[str, Any]]) -> None:
    run_dir, results = finished
    assert results["margin_before"] == 0.0
    assert results["margin_after"] > 0.1
    assert results["reward_accuracy_after"] > 0.9
    assert results["accuracy_after"] >= results["accuracy_before"]
    assert (results["validation_pairs"], results["train_pairs"]) == (20, 80)
    assert results["reload_max_difference"] == 0.0
    assert f"**{results['margin_after']:.4f}** after" in (run_dir / "report.md").read_text()
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_margin_is_that_of_the_saved_models(finished: tuple[Path, dict[str, Any]], tuned: Path, rows: Path) -> None:
    """The number in the results, recomputed from the two folders on disk."""
    from ingot.data.conversations import load_rows

    recipe = dpo_recipe(finished[0], tuned, rows)
    pairs, _ = ConversationEncoder(load_tokenizer(tuned), 64, 96).encode_pairs(
        load_rows(recipe.data, "preference")[1], "validation"
    )
    gains = []
    for folder, sign in ((finished[0], 1), (tuned, -1)):
        model = load_model(folder)
        for side in ("chosen", "rejected"):
            found = heldout.answer_log_probs(model, [getattr(p, side) for p in pairs])[:, 0]
            gains.append(sign * (found if side == "chosen" else -found))
    assert finished[1]["margin_after"] == pytest.approx(float(0.1 * sum(gains).mean()), abs=1e-6)  # type: ignore[union-attr]


def test_precomputed_reference_is_the_start_model_and_is_kept(
    tuned: Path, rows: Path, finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import DPOConfig, DPOTrainer

    from ingot.data.conversations import load_rows

    recipe = dpo_recipe(finished[0], tuned, rows)
    start = finetune.open_start(tuned)
    args = finetune.training_arguments(
        DPOConfig, {**recipe.training.upstream_values(), "use_cpu": True}, finished[0], start
    )
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", None)  # a second computation would fail
    encoder = ConversationEncoder(start.tokenizer, 64, 96)
    pairs, held_out = (encoder.encode_pairs(part, "training")[0] for part in load_rows(recipe.data, "preference"))
    trainer = dpo._trainer(recipe, args, start, pairs, held_out)
    data = trainer.train_dataset
    assert len(data) == 80
    for side in ("chosen", "rejected"):
        ids = [(p + a, [IGNORED] * len(p) + a) for p, a in zip(data["prompt_ids"], data[f"{side}_ids"], strict=True)]
        found = heldout.answer_log_probs(load_model(tuned), [heldout.Example(*pair) for pair in ids])
        torch.testing.assert_close(torch.tensor(data[f"ref_{side}_logps"]).double(), found[:, 0], atol=1e-4, rtol=0)


def test_explicit_reference_trains_the_same_model(
    tuned: Path, rows: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    dpo.run(dpo_recipe(tmp_path / "dpo", tuned, rows, precompute_ref_log_probs=False))
    ours, theirs = (load_file(run_dir / "model/model.safetensors") for run_dir in (finished[0], tmp_path / "dpo"))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=2e-4, rtol=0)


def test_with_an_adapter_the_reference_is_the_model_without_it(tuned: Path, rows: Path, tmp_path: Path) -> None:
    recipe = dpo_recipe(tmp_path / "dpo", tuned, rows, {"adapter": "lora", "r": 4}, learning_rate=7e-3)
    results = dpo.run(recipe)
    assert results["margin_after"] > 0.1
    assert results["merge_max_difference"] < 1e-4
    assert (tmp_path / "dpo/adapter/adapter_model.safetensors").is_file()


def test_margins_by_hand() -> None:
    """Two pairs: log-probabilities and tokens of chosen, chosen, rejected, rejected."""
    before = [[-10.0, 5], [-20.0, 4], [-12.0, 5], [-18.0, 6]]
    after = [[-8.0, 5], [-21.0, 4], [-15.0, 5], [-20.0, 6]]
    found = dpo.margins(before, after, beta=0.5)
    assert found["margin_after"] == pytest.approx(0.5 * ((2 + 3) + (-1 + 2)) / 2)
    assert found["reward_accuracy_after"] == 1.0
    assert found["accuracy_before"] == 0.5  # -2.0 > -2.4 per token, but -5.0 < -3.0
    assert found["chosen_loss_before"] == pytest.approx(30 / 9)
    assert found["chosen_loss_after"] == pytest.approx(29 / 9)


def test_golden_pair(tuned: Path) -> None:
    tokenizer = load_tokenizer(tuned)
    (found,), _ = ConversationEncoder(tokenizer, 64, 96).encode_pairs([pair("q", "yes", "no")], "training")
    text = {name: tokenizer.decode(example.input_ids) for name, example in found._asdict().items()}
    prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert text == {"chosen": prompt + "yes<|im_end|>", "rejected": prompt + "no<|im_end|>"}
    learned = [label for label in found.chosen.labels if label != IGNORED]
    assert tokenizer.decode(learned) == "yes<|im_end|>"
    columns = dpo._columns(found)
    assert columns["prompt_ids"] + columns["rejected_ids"] == found.rejected.input_ids
    assert columns["chosen_ids"] == learned


def test_pairs_that_are_too_long_are_counted_and_useless_ones_refused(tuned: Path) -> None:
    encoder = ConversationEncoder(load_tokenizer(tuned), 64, 96)
    data = [pair("q", "yes", "no"), pair("q", "y" * 50, "no"), pair("q" * 50, "yes", "no")]
    found, counts = encoder.encode_pairs(data, "training")
    assert (len(found), counts.cut, counts.left_out) == (2, 1, 1)
    with pytest.raises(InputError, match="validation row 0 .'q'.: chosen and rejected are the same"):
        encoder.encode_pairs([pair("q", "yes", "yes")], "validation")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"padding_free": True}, "training.padding_free: TRL does not offer it"),
        ({"precompute_ref_log_probs": True, "sync_ref_model": True}, "training.sync_ref_model: a moving reference"),
        ({"bta": 0.1}, "training.bta: no such key; did you mean 'beta'"),
    ],
)
def test_recipe_mistakes_are_refused(training: dict[str, Any], message: str) -> None:
    tree = {
        "data": {"train": [{"path": "rows.jsonl"}], "validation_rows": 20},
        "training": training,
        "run": {"dir": "out", "from": "start"},
    }
    with pytest.raises(InputError, match=message):
        build_recipe(dpo.DPORecipe, tree)


def test_without_precomputing_a_second_model_is_the_reference(tuned: Path, rows: Path, tmp_path: Path) -> None:
    from trl import DPOConfig

    recipe = dpo_recipe(tmp_path / "dpo", tuned, rows, precompute_ref_log_probs=False)
    start = finetune.open_start(tuned)
    values = {**recipe.training.upstream_values(), "use_cpu": True}
    args = finetune.training_arguments(DPOConfig, values, tmp_path / "dpo", start)
    encoder = ConversationEncoder(start.tokenizer, 64, 96)
    pairs, _ = encoder.encode_pairs([pair("q", "yes", "no")], "training")
    trainer = dpo._trainer(recipe, args, start, pairs, pairs)
    assert trainer.ref_model is not trainer.model
    expected = adapters.probe_logits(load_model(tuned), [pairs[0].chosen.input_ids])
    assert (
        adapters.check_equal(
            expected, adapters.probe_logits(trainer.ref_model, [pairs[0].chosen.input_ids]), "float32", ""
        )
        == 0.0
    )
