"""Fine-tuning learns the answers and nothing else, loses no row in silence, and leaves a whole Hub folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig

from ingot.loading import load_model, load_tokenizer
from ingot.recipe import InputError, build_recipe
from ingot.training import finetune, heldout, sft, trl_trainers
from ingot.training.adapters import AdapterModel
from ingot.training.encoding import IGNORED, ConversationEncoder, Example

from .finetune_toys import make_start, sft_recipe, write_rows

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="module")
def finished(start: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("runs") / "sft"
    return run_dir, sft.run(sft_recipe(run_dir, start, rows, num_train_epochs=10, eval_strategy="epoch"))


@pytest.fixture(scope="module")
def tokenizer(start: Path) -> Any:
    return load_tokenizer(start)


def encoder(tokenizer: Any, max_length: int | None = 64, max_positions: int | None = 96) -> ConversationEncoder:
    return ConversationEncoder(tokenizer, max_length, max_positions)


def chat(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


def test_held_out_loss_falls_on_exactly_the_rows_that_were_drawn(finished: tuple[Path, dict[str, Any]]) -> None:
    _, results = finished
    assert results["loss_after"] < 0.3 * results["loss_before"]
    assert (results["validation_rows"], results["train_rows"]) == (20, 80)
    assert results["reload_max_difference"] == 0.0


def test_run_folder_tells_what_happened(finished: tuple[Path, dict[str, Any]]) -> None:
    run_dir, results = finished
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval_loss"] for line in lines if "eval_loss" in line][-1] == pytest.approx(results["loss_after"])
    assert f"**{results['loss_after']:.4f}** after" in (run_dir / "report.md").read_text()
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run_dir / "manifest.json").read_text())["results"] == results


def test_saved_model_answers_and_stops(finished: tuple[Path, dict[str, Any]]) -> None:
    model, tokenizer = load_model(finished[0]), load_tokenizer(finished[0])
    prompt = chat("red blue 7")["messages"]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    out = model.generate(**ids, do_sample=False, max_new_tokens=40)
    assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :]) == "red, blue<|im_end|>"


def test_saved_folder_keeps_tokenizer_and_config_and_says_where_text_ends(
    finished: tuple[Path, dict[str, Any]], start: Path
) -> None:
    saved = finished[0] / "model"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (saved / name).read_bytes() == (start / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (start, saved))
    assert after == before
    assert after["use_cache"] is True
    generation = json.loads((saved / "generation_config.json").read_text())
    assert sorted(generation["eos_token_id"]) == [0, 2]  # <|endoftext|> and <|im_end|>
    assert generation["pad_token_id"] == 3
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")  # still tied


def test_saved_folder_loads_where_ingot_is_not_installed(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "folder = sys.argv[1]\n"
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n"
        "print(type(model).__module__)"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV"))}
    packages = os.pathsep.join(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))
    environment = {**kept, "PYTHONPATH": packages, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-S", "-c", code, str(finished[0] / "model")]  # -S: no editable install on the path
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("transformers_modules")


def test_a_finished_run_is_not_run_again(
    finished: tuple[Path, dict[str, Any]], start: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "_train", None)
    recipe = sft_recipe(finished[0], start, rows, num_train_epochs=10, eval_strategy="epoch")
    assert sft.run(recipe) == finished[1]


def test_golden_ids_and_labels(tokenizer: Any) -> None:
    (example,), _ = encoder(tokenizer).encode([chat("a", "bc", "d", "e")], "training")
    byte = {c: tokenizer.convert_tokens_to_ids(c) for c in "abcde"} | {"\n": tokenizer.convert_tokens_to_ids("Ċ")}
    assert (byte["a"], byte["\n"]) == (68, 202)
    user, assistant = (tokenizer(role, add_special_tokens=False).input_ids for role in ("user", "assistant"))
    n = byte["\n"]
    wanted = [
        *(1, *user, n, byte["a"], 2, n), *(1, *assistant, n, byte["b"], byte["c"], 2, n),
        *(1, *user, n, byte["d"], 2, n), *(1, *assistant, n, byte["e"], 2, n),
    ]  # fmt: skip
    assert example.input_ids == wanted
    assert [label for label in example.labels if label != IGNORED] == [byte["b"], byte["c"], 2, byte["e"], 2]
    assert [i for i, label in enumerate(example.labels) if label != IGNORED] == [20, 21, 22, 44, 45]


def test_answers_are_found_without_generation_marks_too(start: Path) -> None:
    marked, plain = (AutoTokenizer.from_pretrained(start) for _ in range(2))
    plain.chat_template = marked.chat_template.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    data = [chat("a", "bc", "d", "e"), chat("f", "g", "h")]
    assert encoder(plain).encode(data, "training") == encoder(marked).encode(data, "training")


def test_without_assistant_only_loss_every_token_is_learned(tokenizer: Any) -> None:
    (example,), _ = encoder(tokenizer).encode([chat("a", "b")], "training", assistant_only=False)
    assert example.labels == example.input_ids


def test_packed_rows_give_the_loss_of_the_rows_alone(start: Path, tokenizer: Any, tmp_path: Path) -> None:
    texts = [("red", "blue, then green"), ("a b c", "d"), ("one", "two"), ("x", "y z")]
    examples, _ = encoder(tokenizer).encode([chat(*t) for t in texts], "training")
    opened = finetune.open_start(start)
    values = {"packing": True, "max_length": 96, "bf16": False, "use_cpu": True, "per_device_train_batch_size": 2}
    trainer = trl_trainers.SafeSFTTrainer(
        model=load_model(start),
        args=finetune.training_arguments(SFTConfig, values, tmp_path, opened),
        train_dataset=Dataset.from_list([e._asdict() for e in examples]),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape == (len(trainer.train_dataset), 94)  # rows of packed rows, not one long row
    assert len(trainer.train_dataset) < len(examples)
    leak, _ = heldout.packing_leak(trainer.model, batch)
    assert leak < 1e-5
    finetune.check_packing(trainer, AdapterModel())
    collate = trainer.data_collator

    def seeing_all(rows: Any) -> Any:
        found = collate(rows)
        length = found["input_ids"].shape[1]
        return {**found, "attention_mask": torch.ones(length, length).tril().bool()[None, None]}

    trainer.data_collator = seeing_all
    with pytest.raises(InputError, match="in a IngotForCausalLM packed rows see each other"):
        finetune.check_packing(trainer, AdapterModel())
    with torch.no_grad():
        packed = float(trainer.compute_loss(trainer.model, batch))
    assert packed == pytest.approx(heldout.mean_loss(heldout.answer_log_probs(load_model(start), examples)), abs=1e-5)


def test_packed_rows_are_collated_with_restarting_positions() -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]},
        {"input_ids": [10, 11, 12], "labels": [10, 11, 12], "seq_lengths": [3]},
    ]
    batch = {key: value.tolist() for key, value in trl_trainers.PackedRows(3)(rows).items()}
    assert batch == {
        "input_ids": [[5, 6, 7, 8, 9], [10, 11, 12, 3, 3]],
        "labels": [[IGNORED, 6, 7, IGNORED, 9], [IGNORED, 11, 12, IGNORED, IGNORED]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 0]],
    }


def test_log_probs_do_not_depend_on_batching(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(start)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for length in (5, 9, 3, 30, 9):
        ids = torch.randint(4, 260, (length,), generator=generator).tolist()
        examples.append(Example(ids, [IGNORED] * 2 + ids[2:]))
    together = heldout.answer_log_probs(model, examples)
    monkeypatch.setattr(heldout, "LOGITS_BUDGET", 1)
    alone = heldout.answer_log_probs(model, examples)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    ids = torch.tensor([examples[1].input_ids])
    with torch.no_grad():
        by_hand = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[1:].sum()
    assert float(together[1, 0]) == pytest.approx(float(by_hand), abs=1e-4)
    assert together[:, 1].tolist() == [3, 7, 1, 28, 7]


class Interrupt(TrainerCallback):
    """Ctrl-C in the middle of step 7."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_and_continued_equals_uninterrupted(
    start: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sft.run(sft_recipe(tmp_path / "whole", start, rows))
    recipe = sft_recipe(tmp_path / "parts", start, rows)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "LookBeforeSaving", Interrupt)
        with pytest.raises(KeyboardInterrupt):
            sft.run(recipe)
    assert (tmp_path / "parts/checkpoint-7").is_dir()
    assert sft.run(recipe) == whole
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_rows_that_are_too_long_are_counted(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = [chat("a", "b"), chat("a", "b" * 60), chat("a" * 60, "b")]
    examples, counts = encoder(tokenizer).encode(data, "training")
    assert (counts.rows, counts.cut, counts.left_out) == (3, 1, 1)
    assert [len(example.input_ids) for example in examples] == [23, 64]


@pytest.mark.parametrize(
    ("data", "limits", "message"),
    [
        ([chat("a", "b"), chat("only a question")], (64, 96), "training row 1 .'only a question'.: no answer"),
        ([chat("a" * 70, "b")], (64, 96), "none of 1 has a token to learn within training.max_length 64"),
        ([chat("a" * 100, "b")], (None, 96), "122 tokens, and the model takes 96 .*set training.max_length"),
        ([], (64, 96), "none of 0"),
    ],
)
def test_rows_that_cannot_be_learned_are_refused(tokenizer: Any, data: Any, limits: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder(tokenizer, *limits).encode(data, "training")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: None, "no chat template"),
        (lambda t: t.replace(" + '<|im_end|>' }}\n{%- endgen", " }}\n{%- endgen"), "not an end-of-turn mark"),
        (lambda t: t.replace("{{- message['content'] + '<|im_end|>' }}\n{%- endgen", "{%- endgen"), "marks no token"),
    ],
)
def test_templates_that_would_teach_nothing_or_no_end_are_refused(start: Path, change: Any, message: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.chat_template = change(tokenizer.chat_template)
    with pytest.raises(InputError, match=message):
        encoder(tokenizer).encode([chat("a", "b")], "training")


def test_a_tokenizer_that_the_model_has_no_rows_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ids up to 259 and the model 256 embedding rows \(ids up to 255\)"):
        folder = make_start(tmp_path / "start")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 256}))
        finetune.open_start(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.packing_strategy": "wrapped"}, "training.packing_strategy: only 'bfd'"),
        (
            {"training.chat_template_path": "x"},
            "training.chat_template_path: the chat template is part of the tokeniz",
        ),
        ({"training.max_lenght": 64}, "training.max_lenght: no such key; did you mean 'max_length'"),
        ({"training.trust_remote_code": True}, "training.trust_remote_code: only architectures"),
        ({"model.r": 8}, "model.r: has no effect with adapter 'none'"),
        ({"data.validation_rows": None}, "data.validation_rows: nothing to measure with"),
    ],
)
def test_recipe_mistakes_are_refused(changes: dict[str, Any], message: str) -> None:
    tree: dict[str, Any] = {
        "model": {}, "data": {"train": [{"path": "rows.jsonl"}], "validation_rows": 20}, "training": {},
        "run": {"dir": "out", "from": "start"},
    }  # fmt: skip
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    with pytest.raises(InputError, match=message):
        build_recipe(sft.SFTRecipe, tree)


def test_values_that_upstream_refuses_are_input_errors(start: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training: "):
        values = {"use_cpu": True, "bf16": True, "fp16": True}
        finetune.training_arguments(SFTConfig, values, tmp_path, finetune.open_start(start))


def test_a_recipe_is_checked_before_torch_is_imported() -> None:
    code = (
        "import sys; from ingot.training.sft import SFTRecipe; from ingot.training.dpo import DPORecipe\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def qwen3() -> Iterator[Any]:
    folder = SHARED / "tokenizers" / "qwen3"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    yield AutoTokenizer.from_pretrained(folder)


@pytest.mark.shared
def test_answers_are_found_in_qwen3s_own_template(qwen3: Any) -> None:
    (example,), _ = encoder(qwen3).encode([chat("hello", "good day")], "training")
    learned = qwen3.decode([label for label in example.labels if label != IGNORED])
    assert learned == "<think>\n\n</think>\n\ngood day<|im_end|>"
    with pytest.raises(InputError, match="renders earlier turns otherwise"):  # it drops the thoughts of earlier turns
        encoder(qwen3).encode([chat("hello", "good day", "and?", "bye")], "training")
