"""Real processes: two train what one trains, launches that cannot work are refused, Ctrl-C keeps everything."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ingot.export.convert import checkpoint_to_hub
from ingot.loading import load_model
from ingot.recipe_yaml import dump_yaml
from ingot.runs import read_json
from ingot.training.callbacks import read_metrics
from ingot.training.checkpoint_folders import checkpoints_of
from ingot.training.pretrain_trainer import PretrainTrainer

from .conftest import Pretrain
from .pretrain_toys import make_corpus, pretrain_tree
from .spiking import run_off

pytestmark = pytest.mark.timeout(600)  # a process imports for seconds, and on a busy machine for many

ROOT = Path(__file__).parent.parent.parent
# DeepSpeed compiles its CPU part on first use, which takes a minute
BUILT = any((Path.home() / ".cache/torch_extensions").glob("*/deepspeed_shm_comm/*.so"))
UNLESS_BUILT = () if BUILT else pytest.mark.slow


class Started:
    """A process of its own group, with what it says."""

    def __init__(self, words: list[str]) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja, for DeepSpeed
        self.process = subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def read_until(self, beginning: str) -> None:
        """Waits for a line."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith(beginning):
                return
        pytest.fail(f"ended before it said '{beginning}':\n{''.join(lines)}")

    def finish(self) -> tuple[int, str]:
        """Waits for the end: exit code and what was said since the last read."""
        text, _ = self.process.communicate()
        return self.process.returncode, text


Start = Callable[..., Started]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command; nothing of it is left after the test."""
    started: list[Started] = []

    def start(*words: str) -> Started:
        started.append(Started([str(word) for word in words]))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


@pytest.fixture
def recipe_file(corpus: Path, tmp_path: Path) -> Path:
    """A recipe of eight blocks a step, however many processes there are."""
    tree = pretrain_tree(corpus, tmp_path / "pretrain")
    tree["run"] |= {"global_batch_size": 8, "sample_prompts": ["red"]}
    del tree["training"]["use_cpu"]  # the script sets it itself
    path = tmp_path / "pretrain.yaml"
    path.write_text(dump_yaml(tree))
    return path


def launch(config: str, *words: str) -> list[str]:
    """A command line of `accelerate launch` for two processes on a free port."""
    options = [
        "--config_file",
        f"accelerate_configs/{config}.yaml",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "scripts/pretrain.py", *words]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Losses and gradient norms, in order."""
    wanted = ("step", "loss", "grad_norm", "eval_loss")
    return [{k: line[k] for k in wanted if k in line} for line in read_metrics(folder / "metrics.jsonl")]


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for here, there in zip(found, expected, strict=True):
        assert here == pytest.approx(there, abs=tolerance)


CONFIGS = [
    pytest.param("cpu_ddp", "muon"),
    pytest.param("zero2", "muon", marks=UNLESS_BUILT),
    pytest.param("zero1", None, marks=pytest.mark.slow),
    pytest.param("zero1", "muon", marks=pytest.mark.slow),
    pytest.param("zero3", None, marks=pytest.mark.slow),
    pytest.param("zero3_offload", None, marks=pytest.mark.slow),
    pytest.param("cpu_ddp", "lion", marks=pytest.mark.slow),
    pytest.param("zero1", "lion", marks=pytest.mark.slow),
    pytest.param("zero2", "lion", marks=pytest.mark.slow),
    pytest.param("zero3", "lion", marks=pytest.mark.slow),
    pytest.param("zero3_offload", "lion", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("config", "optimizer"), CONFIGS)
def test_two_processes_train_what_one_trains(
    config: str, optimizer: str | None, start: Start, recipe_file: Path, tmp_path: Path, pretrain: Pretrain
) -> None:
    if config != "cpu_ddp":
        pytest.importorskip("deepspeed")
    two = tmp_path / "two"
    words = ["--config", str(recipe_file), f"--run.dir={two}", f"--run.optimizer={optimizer or 'null'}"]
    process = start(*launch(config, *words))
    one, expected = pretrain("one", run__global_batch_size=8, run__optimizer=optimizer)
    code, text = process.finish()
    assert code == 0, text
    assert "2 processes on CPU" in text and text.count("step 12/12  loss") == 1  # only the first one speaks
    assert_close(numbers(two), numbers(one))
    results = read_json(two / "manifest.json")["results"]
    assert results["heldout_loss"] == pytest.approx(expected["heldout_loss"], abs=1e-5)
    there, model = load_model(one).state_dict(), load_model(two)
    for name, tensor in model.state_dict().items():
        assert (tensor - there[name]).abs().max() < 1e-4, name
    assert_equal_models(load_model(checkpoint_to_hub(two / "checkpoint-12", tmp_path / "hub")), model)


def assert_equal_models(found: Any, expected: Any) -> None:
    """Equal logits, and as many weights."""
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert found.num_parameters() == expected.num_parameters()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2", "zero3_offload"])
def test_an_untied_head_is_kept_and_a_sharded_run_continues(
    config: str, start: Start, recipe_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    two = tmp_path / "two"
    words = ["--config", str(recipe_file), f"--run.dir={two}", "--run.optimizer=lion"]
    command = launch(config, *words, "--model.tie_word_embeddings=false")
    code, text = start(*command).finish()
    assert code == 0, text
    assert_equal_models(load_model(checkpoint_to_hub(two / "checkpoint-12", tmp_path / "hub")), load_model(two))
    before = numbers(two)
    for name in ("checkpoint-12", "model"):
        shutil.rmtree(two / name)
    (two / "manifest.json").unlink()
    code, text = start(*command).finish()
    assert code == 0 and f"continuing from {two / 'checkpoint-8'}" in text, text
    assert numbers(two) == before


FSDP2 = [
    pytest.param((), "null", id="sharded"),
    pytest.param(("--fsdp_state_dict_type", "FULL_STATE_DICT"), "lion", id="whole"),
]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("flags", "optimizer"), FSDP2)
def test_fsdp2_trains_continues_and_exports(
    flags: tuple[str, ...],
    optimizer: str,
    tied: bool,
    start: Start,
    recipe_file: Path,
    tmp_path: Path,
    pretrain: Pretrain,
) -> None:
    two = tmp_path / "two"
    words = [f"--run.dir={two}", f"--run.optimizer={optimizer}", f"--model.tie_word_embeddings={tied}".lower()]
    words += ["--training.learning_rate=1e-3", '--run.sample_prompts=["red"]']
    begin = launch("fsdp2", "--config", str(recipe_file), *words)
    place = begin.index("scripts/pretrain.py")
    command = [*begin[:place], *flags, "-m", "tests.training.fsdp_on_cpu", *begin[place + 1 :]]
    process = start(*command)
    changes: dict[str, Any] = {"run__optimizer": None if optimizer == "null" else optimizer}
    changes |= {"model__tie_word_embeddings": tied, "training__learning_rate": 1e-3}
    one, _ = pretrain("one", run__global_batch_size=8, **changes)
    code, text = process.finish()
    assert code == 0, text
    assert_close(numbers(two), numbers(one))
    assert {p.name for p in (two / "model").iterdir()} == {p.name for p in (one / "model").iterdir()}
    assert (two / "model/config.json").read_text() == (one / "model/config.json").read_text()
    assert set(load_file(two / "model/model.safetensors")) == set(load_file(one / "model/model.safetensors"))
    whole = (two / "checkpoint-12/model.safetensors").is_file()
    assert whole is bool(flags) and (two / "checkpoint-12/pytorch_model_fsdp_0").is_dir() is not whole
    hub = checkpoint_to_hub(two / "checkpoint-12", tmp_path / "hub")
    assert_equal_models(load_model(hub), load_model(two))
    before = numbers(two)
    shutil.rmtree(two / "checkpoint-12")
    (two / "manifest.json").unlink()
    code, text = start(*command).finish()
    assert code == 0 and f"continuing from {two / 'checkpoint-8'}" in text, text
    assert_close(numbers(two), before)


CHUNKED = [
    pytest.param("fsdp2", False, 1e-5, id="fsdp2"),
    pytest.param("fsdp2", True, 6e-3, id="fsdp2-bf16"),  # between 4 and 8 bfloat16 has steps of 0.03
    pytest.param("zero3", False, 1e-5, id="zero3"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "bf16", "tolerance"), CHUNKED)
def test_split_weights_and_a_loss_in_several_chunks(
    config: str, bf16: bool, tolerance: float, start: Start, recipe_file: Path, tmp_path: Path, pretrain: Pretrain
) -> None:
    module = "fsdp_on_cpu" if config == "fsdp2" else "small_chunks"
    if config == "zero3":
        pytest.importorskip("deepspeed")
    two = tmp_path / "two"
    words = ["--config", str(recipe_file), f"--run.dir={two}", "--run.optimizer=null"]
    words += [f"--training.bf16={bf16}".lower()]
    begin = launch(config, *words, "--model.tie_word_embeddings=false")
    place = begin.index("scripts/pretrain.py")
    chunk = ["env", "INGOT_TEST_CHUNK=48"]  # of the 128 tokens of a micro-batch
    process = start(*chunk, *begin[:place], "-m", f"tests.training.{module}", *begin[place + 1 :])
    changes: dict[str, Any] = {"training__bf16": bf16, "model__tie_word_embeddings": False, "run__optimizer": None}
    one, _ = pretrain("one", run__global_batch_size=8, **changes)
    code, text = process.finish()
    assert code == 0, text
    assert_close(numbers(two), numbers(one), tolerance)
    if config == "fsdp2":
        assert "gradients are added up in torch.float32" in text and "added up in torch.bfloat16" not in text


@pytest.mark.slow
def test_two_processes_read_a_mixture_in_short_rows_as_one_does(
    start: Start, recipe_file: Path, tmp_path: Path, pretrain: Pretrain, corpus: Path
) -> None:
    small = make_corpus(tmp_path / "small", documents=10)
    data: dict[str, Any] = {
        "packing": "best_fit", "seq_length_schedule": [{"seq_length": 8, "share": 0.5}],
        "mixture": [
            {"shards": str(corpus / "shards"), "weight": 1, "name": "large"},
            {"shards": str(small / "shards"), "weight": 2, "name": "small"},
        ],
    }  # fmt: skip
    changes = {f"data__{key}": value for key, value in data.items()}
    words = [f"--data.{key}={json.dumps(value)}" for key, value in data.items()]
    two = tmp_path / "two"
    words += ["--config", str(recipe_file), f"--run.dir={two}", "--data.shards=null"]
    process = start(*launch("cpu_ddp", *words))
    one, expected = pretrain("one", run__global_batch_size=8, data__shards=None, **changes)
    code, text = process.finish()
    assert code == 0, text
    assert_close(numbers(two), numbers(one))
    results = read_json(two / "manifest.json")["results"]
    for name, source in expected["sources"].items():
        assert results["sources"][name] == pytest.approx(source, abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_continues_in_one(
    start: Start, recipe_file: Path, tmp_path: Path, pretrain: Pretrain
) -> None:
    words = ["--config", str(recipe_file), "--training.max_steps=200", "--training.eval_steps=100"]
    process = start(*launch("cpu_ddp", *words, "--training.save_steps=100"))
    process.read_until("step 1/200")
    os.killpg(process.process.pid, signal.SIGINT)
    code, text = process.finish()
    assert code == 1 and "interrupted; run the same command again" in text, text  # accelerate's exit code
    run_dir = tmp_path / "pretrain"
    newest = max(int(checkpoint.name.removeprefix("checkpoint-")) for checkpoint in checkpoints_of(run_dir))
    assert 0 < newest < 200
    changes: dict[str, Any] = {"training__max_steps": 200, "training__eval_steps": 100, "training__save_steps": 100}
    changes |= {"run__global_batch_size": 8, "run__sample_prompts": ["red"], "training__use_cpu": None}
    continued, _ = pretrain("pretrain", **changes)
    whole, _ = pretrain("whole", **changes)
    assert len(numbers(continued)) == len(numbers(whole)) == 202
    for here, there in zip(numbers(continued), numbers(whole), strict=True):
        assert here == pytest.approx(there, abs=2e-3)  # rounding, through 200 steps


SPIKE = (
    '--run.loss_spike={"window": 6, "patience": 2, "rewinds": 1}', "--run.skip_nonfinite=1", "--training.max_steps=30",
    "--training.save_steps=3", "--training.eval_steps=30", "--training.save_total_limit=4",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu_ddp", "zero2", "fsdp2"])
def test_two_processes_skip_a_step_and_go_back_before_a_spike(
    config: str, start: Start, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrain: Pretrain
) -> None:
    skips = config != "zero2"  # DeepSpeed makes its step before the gradient can be looked at
    two, rules = tmp_path / "two", [rule for rule in SPIKE if skips or "skip" not in rule]
    words = ["--config", str(recipe_file), f"--run.dir={two}", "--run.optimizer=null", *rules]
    begin = launch(config, *words)
    place = begin.index("scripts/pretrain.py")
    environment = {"INGOT_TEST_FSDP": "1"} if config == "fsdp2" else {}
    environment |= {"INGOT_TEST_BROKEN": "5" if skips else ""}
    prefix = ["env", *(f"{key}={value}" for key, value in environment.items())]
    process = start(*prefix, *begin[:place], "-m", "tests.training.spiking", *begin[place + 1 :])
    monkeypatch.setattr(PretrainTrainer, "compute_loss", run_off((5,) if skips else (), 20))
    changes: dict[str, Any] = {"training__max_steps": 30, "training__save_steps": 3, "training__eval_steps": 30}
    changes |= {"run__loss_spike": {"window": 6, "patience": 2, "rewinds": 1}, "training__save_total_limit": 4}
    one, _ = pretrain("one", run__global_batch_size=8, run__optimizer=None, run__skip_nonfinite=int(skips), **changes)
    code, text = process.finish()
    assert code == 0, text
    assert "going back to" in text and "rewind 1 of 1" in text
    assert read_json(two / "rewinds.json")[0]["put_off"] == read_json(one / "rewinds.json")[0]["put_off"]
    assert_close(numbers(two), numbers(one))


@pytest.mark.slow
def test_fsdp_on_cpus_is_refused_in_one_line(start: Start, recipe_file: Path, tmp_path: Path) -> None:
    code, text = start(*launch("fsdp2", "--config", str(recipe_file))).finish()
    assert code == 1, text  # accelerate's
    assert "error: FSDP2 needs GPUs: on a CPU Accelerate would train as DDP" in text
    assert not (tmp_path / "pretrain").exists()


@pytest.mark.slow
def test_muon_under_offload_is_refused_by_name(start: Start, recipe_file: Path) -> None:
    pytest.importorskip("deepspeed")
    code, text = start(*launch("zero3_offload", "--config", str(recipe_file))).finish()
    assert code == 1 and "error: run.optimizer: muon needs whole matrices and ZeRO-3 with offload splits" in text, text


def test_launches_that_start_one_process_are_refused(start: Start, recipe_file: Path, tmp_path: Path) -> None:
    multi_cpu = tmp_path / "multi_cpu.yaml"
    text = (ROOT / "accelerate_configs/cpu_ddp.yaml").read_text().replace("MULTI_GPU", "MULTI_CPU")
    multi_cpu.write_text(text.replace("use_cpu: false", "use_cpu: true"))
    script = ["scripts/pretrain.py", "--config", str(recipe_file)]
    module = [sys.executable, "-m", "accelerate.commands.launch"]
    processes = [
        start(*module, "--cpu", "--num_processes", "2", *script),
        start(*module, "--config_file", str(multi_cpu), *script),
    ]
    for process in processes:
        code, text = process.finish()
        assert code == 1 and "non-zero exit status 2" in text, text  # accelerate's exit code, and the script's
        assert "error: 2 processes were asked for and 1 started" in text
        assert "accelerate launch --config_file accelerate_configs/cpu_ddp.yaml --num_processes 2" in text
    assert not (tmp_path / "pretrain").exists()


@pytest.mark.slow  # the short form of `ingot faults`, a test of its own, sends signals too
def test_ctrl_c_keeps_everything(
    start: Start, recipe_file: Path, tmp_path: Path, pretrain: Pretrain, weights: Callable[[Path], Any]
) -> None:
    words = ["--config", str(recipe_file), "--training.max_steps=300", "--training.eval_steps=100"]
    process = start(sys.executable, "scripts/pretrain.py", *words, "--training.save_steps=100")
    process.read_until("step 1/300")
    os.killpg(process.process.pid, signal.SIGINT)
    code, text = process.finish()
    assert code == 130, text
    assert "SIGINT: saving a checkpoint after this step" in text
    assert text.rstrip().endswith("interrupted; run the same command again to continue")
    run_dir = tmp_path / "pretrain"
    (checkpoint,) = checkpoints_of(run_dir)
    assert not (run_dir / "manifest.json").exists() and not (run_dir / ".staging").exists()
    changes: dict[str, Any] = {"training__max_steps": 300, "training__eval_steps": 100, "training__save_steps": 100}
    changes |= {"run__global_batch_size": 8, "run__sample_prompts": ["red"], "training__use_cpu": None}
    continued, _ = pretrain("pretrain", **changes)
    whole, _ = pretrain("whole", **changes)
    assert "continuing from" in (run_dir / "log.txt").read_text() and not list(tmp_path.glob("*.old-*"))
    assert numbers(continued) == numbers(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(continued)[name], tensor), name
