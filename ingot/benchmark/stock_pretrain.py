"""A recipe of pretrain through transformers' own Trainer and Qwen3ForCausalLM: what Ingot's losses are held against.

Initial weights, blocks and their order, optimizer, schedule and clipping are the recipe's; the model, its loss and the
loop are upstream's. `python -m ingot.benchmark.stock_pretrain --config RECIPE`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments, set_seed

from ingot.data.assembly import collate
from ingot.loading import load_tokenizer
from ingot.recipe import InputError, parse_command_line
from ingot.training.callbacks import MetricsCallback, Throughput
from ingot.training.compiling import take_keys
from ingot.training.launch import prepare_launch
from ingot.training.pretrain import PretrainRecipe
from ingot.training.pretrain_data import HeldOut, RunData
from ingot.training.pretrain_loop import build_model, training_arguments
from modeling import IngotForCausalLM

INPUTS = ("input_ids", "labels", "position_ids")


class StockTrainer(Trainer):
    """Upstream's Trainer, which measures the held-out loss as Ingot does: over all labels, in nats per token."""

    eval_dataset: HeldOut  # type: ignore[assignment]

    @torch.no_grad()
    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Logs and returns the loss; of a mixture, the losses of its sources too."""
        size, losses = self.args.per_device_eval_batch_size, []
        model = cast(torch.nn.Module, self.model).eval()
        for source in self.eval_dataset.sources:
            blocks, total = source.heldout, 0.0
            for begin in range(0, len(blocks), size):
                batch = plain_batch([blocks[i] for i in range(begin, min(begin + size, len(blocks)))])
                with self.compute_loss_context_manager():
                    total += float(model(**self._prepare_inputs(batch), num_items_in_batch=1, use_cache=False).loss)
            losses.append(total / blocks.num_targets)
        model.train()
        metrics = self.eval_dataset.metrics(losses, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def plain_batch(blocks: list[Any]) -> dict[str, Any]:
    """A batch with nothing but ids, labels and positions, which keep documents apart in upstream's model."""
    batch = collate(blocks)
    return {key: batch[key] for key in INPUTS}


def as_qwen3(ours: IngotForCausalLM) -> Qwen3ForCausalLM:
    """Upstream's model with the same weights.

    Raises: InputError for an architecture that Qwen3 cannot express.
    """
    config = Qwen3Config(
        **{key: value for key, value in ours.config.to_dict().items() if key in Qwen3Config().to_dict()}
    )
    model = Qwen3ForCausalLM(config)
    try:
        model.load_state_dict(ours.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"model: Qwen3 has not this architecture ({reason}); leave the stock Trainer out") from error
    return model


def stock_trainer(recipe: PretrainRecipe, training: Mapping[str, Any]) -> StockTrainer:
    """The trainer of a recipe, as pretraining would make it, but for model and loop.

    Raises: InputError for what upstream's Trainer has not.
    """
    if recipe.run.optimizer is not None:
        raise InputError("run.optimizer: upstream's Trainer has it not; --run.optimizer=null")
    if recipe.run.fp8:
        raise InputError("run.fp8: upstream's Trainer has it not; --run.fp8=false")
    folder = recipe.run.dir
    folder.mkdir(parents=True, exist_ok=True)
    _, values = take_keys(dict(training))
    arguments, blocks = training_arguments(recipe, folder, values)
    data = RunData(recipe.data, arguments.seed, blocks, arguments.max_steps)
    set_seed(arguments.seed)
    ours = build_model(recipe, load_tokenizer(recipe.model.tokenizer), data.shards)
    rate = Throughput(data.num_blocks * data.seq_length // arguments.max_steps, None)
    return StockTrainer(
        model=as_qwen3(ours),
        args=arguments,
        train_dataset=cast(Dataset[Any], data.train),
        eval_dataset=cast(Dataset[Any], data.heldout),
        data_collator=plain_batch,
        callbacks=[MetricsCallback(folder, rate)],
    )


def main(argv: Sequence[str]) -> None:
    """Trains as the words of `ingot pretrain` say, and leaves metrics.jsonl in the run folder."""
    recipe = parse_command_line(PretrainRecipe, argv)
    training = prepare_launch(recipe.training.upstream_values())
    trainer = stock_trainer(recipe, training)
    trainer.train()
    _evaluate_at_the_end(trainer, trainer.args)


def _evaluate_at_the_end(trainer: StockTrainer, arguments: TrainingArguments) -> None:
    evaluated = [log["step"] for log in trainer.state.log_history if "eval_loss" in log]
    if arguments.max_steps not in evaluated:
        trainer.evaluate()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
