"""What happens beside the steps: metrics.jsonl, progress lines, samples, and a clean stop on Ctrl-C or SIGTERM."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from ingot.failures import FULL
from ingot.files import append_text
from ingot.planning.hardware import mfu
from ingot.runs import get_logger, is_main_process, num_processes, write_text
from ingot.training.checkpoint_folders import checkpoints_of
from ingot.training.machine_metrics import GpuSampler, peak_memory

logger = get_logger(__name__)

METRICS = "metrics.jsonl"
# Ctrl-C, the end of a job, and what Slurm can be asked to send before that: `#SBATCH --signal=USR1@120`
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_SIGNAL = 2.0  # seconds; a launcher passes on what the terminal has sent to its processes already
ASK_EVERY, MOST_STEPS = 4.0, 200  # seconds and steps after which several processes tell each other of signals
# what the progress line shows, in this order
SHOWN = {
    "loss": "loss {:.4f}", "eval_loss": "held-out loss {:.4f}", "eval_bits_per_byte": "{:.4f} bits per byte",
    "margin": "margin {:.4f}", "rewards/margins": "margin {:.4f}", "learning_rate": "lr {:.2e}",
    "grad_norm": "grad norm {:.2f}", "tokens_per_second": "{:,.0f} tok/s", "mfu": "MFU {:.1%}",
}  # fmt: skip


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; what a crash left of a line, or a power cut in its place, is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            logger.warning("%s: a line that is no JSON is left out: %r", path, line[:40])
    return [line for line in found if isinstance(line, dict) and "step" in line]


class Throughput:
    """Tokens per second and MFU between two log events, time for evaluation and saving left out."""

    def __init__(self, tokens_per_step: int, flops_per_token: float | Callable[[int], float] | None) -> None:
        """`flops_per_token`: a number, or what it is in each step, counted from 0."""
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.reset(0)

    def reset(self, step: int) -> None:
        """Starts a new span at a step."""
        self.step, self.since = step, time.monotonic()

    def measure(self, step: int) -> dict[str, float]:
        """`step_seconds`, `tokens_per_second` over all processes and, on a known GPU, `mfu`; empty without a step."""
        seconds = time.monotonic() - self.since
        steps = range(self.step, step)
        tokens = len(steps) * self.tokens_per_step
        self.reset(step)
        if tokens <= 0 or seconds <= 0:
            return {}
        rate = tokens / seconds
        used = None
        if self.flops_per_token is not None and torch.cuda.is_available():
            used = mfu(rate / num_processes(), self._flops(steps), torch.cuda.get_device_name())
        found = {"step_seconds": round(seconds / len(steps), 5), "tokens_per_second": round(rate, 1)}
        return found if used is None else found | {"mfu": round(used, 4)}

    def _flops(self, steps: range) -> float:
        """FLOPs of one token in the mean of these steps."""
        assert self.flops_per_token is not None
        if callable(self.flops_per_token):
            return sum(map(self.flops_per_token, steps)) / len(steps)
        return self.flops_per_token


class MetricsCallback(TrainerCallback):
    """Appends every log event to metrics.jsonl and shows it: one moving line on a terminal, plain lines elsewhere.

    A training event also gets speed, peak memory and the GPU's use, temperature and power. Of several processes,
    memory and GPU are those of the first: to gather the others' would make every process wait.
    """

    def __init__(
        self, run_dir: Path, throughput: Throughput, bits_per_nat_and_byte: float | None = None, epochs: float = 1.0
    ) -> None:
        """`bits_per_nat_and_byte` turns nats per token into bits per byte: tokens / (bytes * ln 2).

        `epochs`: passes over the corpus in what the trainer counts as one.
        """
        self.run_dir, self.path = run_dir, run_dir / METRICS
        self.throughput, self.to_bits, self.epochs = throughput, bits_per_nat_and_byte, epochs
        self.began, self.first_step = time.monotonic(), 0
        self.gpu = GpuSampler()
        self._unwritten: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drops lines of steps that the checkpoint does not have: a continued run has neither gaps nor doubles."""
        self.began, self.first_step = time.monotonic(), state.global_step
        self.throughput.reset(state.global_step)
        if is_main_process():
            self.gpu.start()
            kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks no longer at the GPU."""
        self.gpu.stop()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes and shows one event; upstream's summary of a run would tell only of its last part.

        What is measured goes into `logs` too, for the callbacks that come after this one.
        """
        logs = {} if logs is None else logs
        if "train_loss" in logs:
            return
        if "loss" in logs:
            logs |= self.throughput.measure(state.global_step) | peak_memory() | self.gpu.take()
        record = {"step": state.global_step, **logs}
        if "epoch" in record:
            record["epoch"] = round(record["epoch"] * self.epochs, 4)
        if "eval_loss" in record and self.to_bits is not None:
            record["eval_bits_per_byte"] = record["eval_loss"] * self.to_bits
        if not is_main_process():
            return
        self._write(json.dumps(record) + "\n")
        self._show(record, state)

    def _write(self, line: str) -> None:
        """Appends a line; on a full disk it waits for the next one to be written with it."""
        self._unwritten.append(line)
        try:
            append_text(self.path, "".join(self._unwritten))
        except OSError as error:
            if error.errno not in FULL:
                raise
            logger.warning("%s: %s; kept in memory until there is room", self.path, error.strerror)
        else:
            self._unwritten = []

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the evaluation out of the next tokens per second."""
        self.throughput.reset(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leaves the saving out, too."""
        self.throughput.reset(state.global_step)

    def _show(self, record: dict[str, Any], state: TrainerState) -> None:
        parts = [text.format(float(record[key])) for key, text in SHOWN.items() if key in record]
        if not parts:
            return
        line = f"step {state.global_step}/{state.max_steps}  " + "  ".join([*parts, *self._outlook(record, state)])
        if sys.stderr.isatty() and "loss" in record:
            print(
                f"\r\033[K{line}", end="" if state.global_step < state.max_steps else "\n", file=sys.stderr, flush=True
            )
        else:
            logger.info(("\r\033[K" if sys.stderr.isatty() else "") + line)

    def _outlook(self, record: dict[str, Any], state: TrainerState) -> list[str]:
        done = state.global_step - self.first_step
        if "loss" not in record or not done:
            return []
        seconds = (time.monotonic() - self.began) / done * (state.max_steps - state.global_step)
        saved = [f"saved {c.name.removeprefix('checkpoint-')}" for c in checkpoints_of(self.run_dir)[-1:]]
        return [f"ETA {int(seconds) // 3600}:{int(seconds) % 3600 // 60:02}:{int(seconds) % 60:02}", *saved]


def metrics_first(trainer: Any) -> None:
    """Puts the metrics before upstream's reporters (TensorBoard, W&B, ...), so that these get its numbers too."""
    trainer.callback_handler.callbacks.sort(key=lambda callback: not isinstance(callback, MetricsCallback))


class StopOnSignal(TrainerCallback):
    """On Ctrl-C, SIGTERM or SIGUSR1 finishes the step, saves a checkpoint and stops; a second signal stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._stopping = False
        self._previous: dict[int, Any] = {}
        self._ask_at, self._asked_at, self._asked = 1, 0, time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the signals, unless they are taken already."""
        self._ask_at, self._asked_at, self._asked = state.global_step + 1, state.global_step, time.monotonic()
        for number in SIGNALS:
            handler = signal.signal(number, self._receive)
            self._previous.setdefault(number, handler)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            logger.info("%s: saving a checkpoint after this step (again: stop at once)", signal.Signals(number).name)
        elif time.monotonic() - self._since > SAME_SIGNAL:
            raise KeyboardInterrupt

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for a save; several processes agree on it every few seconds."""
        stop = self.received is not None
        if num_processes() > 1:
            if state.global_step < self._ask_at:
                return
            stop = self._agree(stop, state.global_step, args.device)
        if stop and state.global_step < state.max_steps:
            control.should_log = control.should_save = self._stopping = True

    def _agree(self, stop: bool, step: int, device: torch.device) -> bool:
        """Whether any process was told to stop, and when to ask again: the same answer on all of them."""
        a_step = (time.monotonic() - self._asked) / (step - self._asked_at)
        steps = min(MOST_STEPS, max(1, int(ASK_EVERY / max(1e-3, a_step))))
        answer = torch.tensor([int(stop), -steps], device=device)
        torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX)
        stop_all, steps = answer.tolist()
        self._ask_at, self._asked_at, self._asked = step - steps, step, time.monotonic()
        return bool(stop_all)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raises: KeyboardInterrupt once the checkpoint is there.

        Upstream's way of stopping would load the best model, and may delete the checkpoint that was just written.
        """
        if self._stopping:
            self.on_train_end(args, state, control)
            raise KeyboardInterrupt


class LookBeforeSaving(TrainerCallback):
    """Lets no step be saved whose numbers were not looked at, which WatchedSteps does when a step is logged."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for a log with every save."""
        control.should_log = control.should_log or control.should_save


class SamplesCallback(TrainerCallback):
    """Writes what the model says to a few prompts at every evaluation, to samples/step-N.md."""

    def __init__(
        self, run_dir: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int
    ) -> None:
        self.folder, self.tokenizer, self.prompts, self.max_new_tokens = (
            run_dir / "samples",
            tokenizer,
            prompts,
            max_new_tokens,
        )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Samples at temperature 0.8; the training's random state is left as it was."""
        if not self.prompts or not is_main_process() or _is_sharded(kwargs["model"]):
            return
        # compiled layers would be compiled anew for every length
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(args.seed)
            texts = [self._complete(kwargs["model"], prompt) for prompt in self.prompts]
        self.folder.mkdir(exist_ok=True)
        page = "\n\n".join(f"**{p}**{t}" for p, t in zip(self.prompts, texts, strict=True))
        write_text(self.folder / f"step-{state.global_step:06}.md", page + "\n")

    @torch.no_grad()
    def _complete(self, model: Any, prompt: str) -> str:
        was_training, cached = model.training, model.config.use_cache
        model.eval()
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
        room = min(self.max_new_tokens, model.config.max_position_embeddings - ids.shape[1])
        out = model.generate(
            ids,
            max_new_tokens=room,
            do_sample=True,
            temperature=0.8,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        model.config.use_cache = cached
        model.train(was_training)
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def _is_sharded(model: Any) -> bool:
    """Whether processes share out the weights (ZeRO-3, FSDP2), so that none can generate alone.

    ZeRO-3 leaves small weights whole, and `generate` waits for the other processes all the same.
    """
    return is_deepspeed_zero3_enabled() or any(isinstance(p, DTensor) for p in model.parameters())
