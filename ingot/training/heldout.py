"""How likely a model finds the answers of held-out rows: the number behind SFT's loss and DPO's margin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ingot.training.encoding import IGNORED, Example

if TYPE_CHECKING:
    from accelerate import Accelerator

# Logits held at once, in numbers: 128 MiB in float32. A single longer row still goes alone.
LOGITS_BUDGET = 2**25


def plain_logits(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) in float32 of right-padded ids (B, T), in evaluation mode.

    Calls the class's own forward, because a trainer puts bf16 autocast and a fused head on the instance's.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        # no mask: attention is causal, so what stands before the padding does not see it
        logits = type(model).forward(model, input_ids=input_ids, use_cache=False).logits.float()
    model.train(training)
    return logits


def packing_leak(model: torch.nn.Module, batch: Mapping[str, Any]) -> tuple[float, float]:
    """How much the last row of a packed batch sees of the rows before it.

    batch: what TRL's collator makes of packed rows, (1, T). Returns the largest difference of the row's logits to
    those of the row alone, which is rounding when rows are kept apart, and the largest logit.
    """
    device, training = next(model.parameters()).device, model.training
    given = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items() if k != "labels"}
    first = int((given["position_ids"][0] == 0).nonzero()[-1])
    alone = plain_logits(model, given["input_ids"][:, first:])[0]
    model.eval()
    with torch.no_grad():
        packed = type(model).forward(model, **given, use_cache=False).logits[0, first:].float()
    model.train(training)
    return float((packed - alone).abs().max()), float(alone.abs().max())


def answer_log_probs(
    model: torch.nn.Module, examples: Sequence[Example], accelerator: Accelerator | None = None
) -> torch.Tensor:
    """Per example the summed log-probability of its supervised tokens and their number: (N, 2), float64 on the CPU.

    With an accelerator of several processes each does its share; all get the whole result.
    """
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    device = next(model.parameters()).device
    vocab_size = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    batches = list(_batches(examples, LOGITS_BUDGET // vocab_size))
    found = torch.zeros(len(examples), 2, dtype=torch.float64, device=device)
    # as many turns on every process: under ZeRO-3 they gather the weights together
    for turn in range(rank, -(-len(batches) // world) * world, world):
        indexes = batches[min(turn, len(batches) - 1)]
        values = _batch_log_probs(model, [examples[i] for i in indexes], device)
        if turn < len(batches):
            found[indexes] = values.double()
    if accelerator is not None and world > 1:
        found = accelerator.reduce(found, reduction="sum")
    return found.cpu()


def _batches(examples: Sequence[Example], max_tokens: int) -> Iterator[list[int]]:
    """Indexes of examples of like length, with at most `max_tokens` tokens after padding."""
    batch: list[int] = []
    for i in sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids)):
        if batch and (len(batch) + 1) * len(examples[i].input_ids) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _batch_log_probs(model: torch.nn.Module, examples: Sequence[Example], device: torch.device) -> torch.Tensor:
    ids = pad_sequence([torch.tensor(e.input_ids) for e in examples], batch_first=True).to(device)
    labels = pad_sequence([torch.tensor(e.labels) for e in examples], batch_first=True, padding_value=IGNORED)
    targets = labels[:, 1:].to(device)  # (B, T - 1): position t predicts token t + 1
    losses = torch.nn.functional.cross_entropy(
        plain_logits(model, ids)[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([-losses.sum(dim=1), (targets != IGNORED).sum(dim=1).to(losses.dtype)], dim=1)


def mean_loss(log_probs: torch.Tensor) -> float:
    """Nats per supervised token over all rows of `answer_log_probs`."""
    total, tokens = log_probs.sum(dim=0).tolist()
    return -total / tokens
