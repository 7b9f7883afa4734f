"""lm-eval on local files: the right answer is found, chance and error are told, a broken task is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.evaluation.harness import HarnessOptions, load_tasks, run_tasks, task_files
from ingot.recipe import InputError

from .conftest import make_model

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.0}}
"""
SHARED = Path(__file__).parents[3] / "shared" / "data"


def write_task(folder: Path, name: str, num_rows: int = 12) -> Path:
    """A task whose right answer is always `free`, at changing places."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    rows = []
    for i in range(num_rows):
        choices = ["peace", "trade"]
        choices.insert(i % 3, "free")
        rows.append({"question": f"people {i} are", "choices": choices, "label": i % 3})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    return folder / f"{name}.yaml"


def model_that_likes(tokenizer: Any, text: str, strength: float) -> Any:
    """A model whose logits say only how much it likes the tokens of a text."""
    model = make_model(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    bonus = torch.zeros(model.config.vocab_size)
    bonus[tokenizer(text).input_ids] = strength
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bonus)
    return model


@pytest.mark.parametrize("strength,expected", [(5.0, 1.0), (-5.0, 0.0)])
def test_the_planted_answer_is_chosen_by_a_model_that_likes_it(
    tokenizer: Any, tmp_path: Path, strength: float, expected: float
) -> None:
    manager, names = load_tasks([write_task(tmp_path, "planted")])
    model = model_that_likes(tokenizer, " free", strength)
    samples = tmp_path / "samples.jsonl"
    found = run_tasks(model, tokenizer, manager, names, HarnessOptions(max_length=32), samples)["planted"]
    assert (found["acc"], found["rows"], found["acc_stderr"]) == (expected, 12, 0.0)
    assert found["chance"] == pytest.approx(1 / 3)
    assert (found["num_fewshot"], found["version"], found["chat_template"]) == (0, "2.0", False)
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["task"] == "planted" and first["doc"]["choices"][first["target"]] == "free"


def test_limit_and_examples_in_the_prompt_reach_lm_eval(tokenizer: Any, tmp_path: Path) -> None:
    manager, names = load_tasks([write_task(tmp_path, "few")])
    options = HarnessOptions(num_fewshot=1, limit=4, max_length=32)
    found = run_tasks(model_that_likes(tokenizer, " free", 5.0), tokenizer, manager, names, options)["few"]
    assert (found["rows"], found["num_fewshot"], found["acc"]) == (4, 1, 1.0)


def test_a_folder_gives_all_its_tasks(tmp_path: Path) -> None:
    files = [write_task(tmp_path, "one"), write_task(tmp_path, "two")]
    (tmp_path / "_shared.yaml").write_text("output_type: multiple_choice\n")
    assert task_files([tmp_path]) == files
    assert load_tasks(files)[1] == ["one", "two"]


def test_a_broken_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.tasks: .*absent.yaml does not exist"):
        task_files([tmp_path / "absent.yaml"])
    with pytest.raises(InputError, match="holds no .yaml file"):
        task_files([tmp_path])
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("task: [unclosed\n")
    with pytest.raises(InputError, match=r"wrong.yaml: not a task that lm-eval can read"):
        load_tasks([wrong])
    lost = write_task(tmp_path, "lost")
    (tmp_path / "lost.jsonl").unlink()
    with pytest.raises(InputError, match=r"lost.yaml: lm-eval cannot load this task: .*lost.jsonl"):
        load_tasks([lost])


def test_an_answer_longer_than_the_window_is_told(tokenizer: Any, tmp_path: Path) -> None:
    manager, names = load_tasks([write_task(tmp_path, "long")])
    with pytest.raises(InputError, match="longer than the window of 1 tokens"):
        run_tasks(make_model(), tokenizer, manager, names, HarnessOptions(max_length=1))


@pytest.mark.shared
def test_a_benchmark_from_a_local_file(tokenizer: Any, tmp_path: Path) -> None:
    data = SHARED / "eval" / "ai2_arc" / "ARC-Easy-test.jsonl.gz"
    if not data.is_file():
        pytest.skip(f"{data} is not here")
    with gzip.open(data, "rt", encoding="utf-8") as lines:
        num_choices = [len(json.loads(next(lines))["choices"]["text"]) for _ in range(6)]
    text = TASK.format(name="arc_easy", data=data).replace("{{choices}}", "{{choices.text}}")
    (tmp_path / "arc.yaml").write_text(text.replace("{{label}}", "{{choices.label.index(answerKey)}}"))
    manager, names = load_tasks([tmp_path / "arc.yaml"])
    found = run_tasks(make_model(), tokenizer, manager, names, HarnessOptions(limit=6, max_length=128))["arc_easy"]
    assert found["rows"] == 6 and 0 <= found["acc"] <= 1
    assert found["chance"] == pytest.approx(sum(1 / n for n in num_choices) / 6)
