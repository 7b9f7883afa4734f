"""What safety costs: the time of a step beside upstream's plain Trainer, and the pause that a save makes.

Run as a program it measures a recipe in this process: `python -m ingot.faults.overhead RECIPE FOLDER`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from ingot.faults import toys
from ingot.faults.workplace import Result, Workplace
from ingot.recipe_yaml import dump_yaml

MOST = 0.005  # of a step's time that safety may take on a GPU
WARM_UP = 5  # steps that are not counted


def overhead(work: Workplace) -> Result:
    """Measures in a process that sees the GPU where there is one; on a CPU it only reports."""
    corpus = toys.make_corpus(work.folder / "overhead", documents=2000)
    recipe = work.folder / "overhead.yaml"
    recipe.write_text(dump_yaml(recipe_tree(corpus, work.folder / "overhead-run", has_gpu())))
    words = ["-m", "ingot.faults.overhead", str(recipe), str(work.folder / "overhead-run")]
    run = work.processes.cold(words, with_gpus=True)
    if run.wait(1800) != 0:
        raise RuntimeError(f"overhead: {run.text[-2000:]}")
    measured: dict[str, Any] = json.loads(run.text.splitlines()[-1])
    passed = measured["device"] == "CPU" or measured["overhead"] < MOST
    asked = f"below {MOST:.1%} of a step on a GPU (on a CPU reported alone); the pause of a save"
    return {"name": "overhead", "asked": asked, "measured": measured, "passed": passed}


def has_gpu() -> bool:
    """Whether the driver shows a GPU; torch is not asked, which this process does not import."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def recipe_tree(corpus: Path, run_dir: Path, gpu: bool) -> dict[str, Any]:
    """A model whose step takes about a tenth of a second: 1M parameters on a CPU, the 125m recipe's on a GPU."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 1024}
    if gpu:
        sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32768}
    tree = toys.pretrain_tree(corpus, run_dir)
    tree["model"] |= {
        **sizes,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": sizes["hidden_size"] // 4,
    }
    tree["data"]["seq_length"] = 1024 if gpu else 128
    tree["training"] |= {
        "per_device_train_batch_size": 8, "learning_rate": 1e-4, "logging_steps": 10, "bf16": gpu, "use_cpu": not gpu,
        "max_steps": 250 if gpu else 25, "eval_strategy": "no", "save_strategy": "no",
    }  # fmt: skip
    del tree["training"]["eval_steps"]
    tree["run"]["optimizer"] = None
    return tree


def measure(path: Path, folder: Path, rounds: int = 4) -> dict[str, Any]:
    """Seconds of a step with and without safety, in turn, and of saves in both ways; of one process."""
    import torch

    trials = Trials(path, folder)
    steps: dict[str, list[float]] = {"plain": [], "safe": []}
    for number in range(2 * rounds):
        name = ("plain", "safe")[(number + number // 2) % 2]  # plain safe safe plain ...: drifts cancel out
        steps[name].append(trials.seconds_per_step(name == "safe"))
    plain, safe = (median(steps[name]) for name in ("plain", "safe"))
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "parameters": trials.parameters,
        "step_ms_plain": round(1e3 * plain, 3), "step_ms_safe": round(1e3 * safe, 3),
        "overhead": round(safe / plain - 1, 5), "spread_of_plain": round(max(steps["plain"]) / plain - 1, 5),
        **trials.saves(),
    }  # fmt: skip


class Trials:
    """Short runs of one recipe, by upstream's Trainer and by ours."""

    def __init__(self, path: Path, folder: Path) -> None:
        from ingot.loading import load_tokenizer
        from ingot.recipe import load_recipe
        from ingot.training.launch import prepare_launch
        from ingot.training.pretrain import PretrainRecipe

        self.recipe, self.folder, self.parameters = load_recipe(PretrainRecipe, path), folder, 0
        folder.mkdir(parents=True)
        self.training = prepare_launch(self.recipe.training.upstream_values())
        self.tokenizer = load_tokenizer(self.recipe.model.tokenizer)

    def _trainer(self, safe: bool, clock: Any, **changes: Any) -> Any:
        from transformers import Trainer, set_seed
        from transformers.trainer_callback import PrinterCallback

        from ingot.data.assembly import collate
        from ingot.training import pretrain_loop
        from ingot.training.pretrain_data import RunData

        arguments, blocks = pretrain_loop.training_arguments(self.recipe, self.folder, self.training | changes)
        data = RunData(self.recipe.data, arguments.seed, blocks, arguments.max_steps)
        set_seed(arguments.seed)
        model = pretrain_loop.build_model(self.recipe, self.tokenizer, data.shards)
        self.parameters = model.num_parameters()
        own = pretrain_loop.callbacks(self.recipe, self.folder, arguments, model, self.tokenizer, data) if safe else []
        made: Callable[..., Any] = pretrain_loop.PretrainTrainer if safe else Trainer
        trainer = made(
            model=model, args=arguments, train_dataset=data.train, data_collator=collate, callbacks=[clock, *own],
            **({"eval_dataset": data.heldout, "processing_class": self.tokenizer} if safe else {}),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _train(self, trainer: Any, background: bool = False) -> None:
        from ingot.training.continuing import train_to_the_end
        from ingot.training.pretrain_loop import PretrainTrainer

        if isinstance(trainer, PretrainTrainer):
            train_to_the_end(trainer, self.recipe.run.model_copy(update={"background_save": background}), "adamw")
        else:
            trainer.train()

    def seconds_per_step(self, safe: bool) -> float:
        """The mean over a run, its first steps left out."""
        clock = _clock()
        self._train(self._trainer(safe, clock))
        return (clock.times[-1] - clock.times[WARM_UP]) / (len(clock.times) - 1 - WARM_UP)

    def saves(self) -> dict[str, Any]:
        """Seconds that training stands still for a save, and until the checkpoint is durable."""
        found: dict[str, Any] = {}
        for name, background in (("foreground", False), ("background", True)):
            trainer = self._trainer(True, _clock(), save_strategy="steps", save_steps=0.2, save_total_limit=1)
            self._train(trainer, background)
            (checkpoint,) = self.folder.glob("checkpoint-*")
            found["checkpoint_bytes"] = sum(f.stat().st_size for f in checkpoint.iterdir())
            found[f"save_pause_s_{name}"] = round(median(trainer.pauses), 4)
            found[f"save_durable_s_{name}"] = round(median(trainer.saves), 4)
            _empty(self.folder)
        return found


def _clock() -> Any:
    """A callback that notes when each step has ended; on a GPU when its work is done, at the ends alone."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        times: list[float]

        def __init__(self) -> None:
            self.times = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends = (WARM_UP + 1, state.max_steps)
            if torch.cuda.is_available() and state.global_step in ends:
                torch.cuda.synchronize()
            # beside other work a CPU's own time is steadier than that of the wall
            self.times.append(time.monotonic() if torch.cuda.is_available() else time.process_time())

    return Clock()


def _empty(folder: Path) -> None:
    import shutil

    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


if __name__ == "__main__":
    from ingot.training.quiet import keep_quiet

    keep_quiet()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))
