"""Bits per byte of a model on whole documents, and of xz and bzip2 on the same text.

What is counted: every token of a document's own text once, with as much of the document before it as the window holds
(at least seq_length - stride tokens). The first token of a document, which nothing precedes, costs
log2(vocabulary size) bits, unless the tokenizer puts a beginning-of-text token before it. Beginning-of-text and
end-of-text tokens are not counted. Bytes are those of the text in UTF-8.
"""

import bz2
import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ingot.evaluation.documents import Document
from ingot.recipe import InputError
from ingot.runs import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGITS_BUDGET = 2**28  # logits at once: 1 GiB in float32
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "xz": partial(lzma.compress, preset=9),
    "bz2": partial(bz2.compress, compresslevel=9),
}


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `end` of a document, of which those from `first_scored` on are scored."""

    document: int
    start: int
    end: int
    first_scored: int


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text; `nats` include the fixed cost of first tokens."""

    nats: float
    num_tokens: int  # of the text
    num_predicted: int  # of those, the ones that the model predicted
    num_correct: int  # of those, the ones that it found most likely
    num_bytes: int
    num_documents: int

    def results(self) -> dict[str, Any]:
        """The numbers of a report."""
        nats_per_token = self.nats / self.num_tokens
        return {
            "bits_per_byte": self.nats / math.log(2) / self.num_bytes,
            "nats_per_token": nats_per_token,
            "perplexity": math.exp(nats_per_token),
            "accuracy": self.num_correct / max(1, self.num_predicted),
            "documents": self.num_documents,
            "bytes": self.num_bytes,
            "tokens": self.num_tokens,
        }


def windows_of(document: int, num_tokens: int, seq_length: int, stride: int) -> Iterator[Window]:
    """Windows that score every token of a document but its first exactly once; all but the first are full."""
    end = min(num_tokens, seq_length)
    if num_tokens > 1:
        yield Window(document, 0, end, 1)
    while end < num_tokens:
        scored, end = end, min(end + stride, num_tokens)
        yield Window(document, end - seq_length, end, scored)


def batches_of(windows: Sequence[Window], batch_size: int) -> Iterator[list[Window]]:
    """Batches of windows of like length; first windows, whose every token is scored, apart from the others."""
    for first in (True, False):
        group = [w for w in windows if (w.start == 0) is first]
        group.sort(key=lambda w: w.end - w.start)
        yield from (group[i : i + batch_size] for i in range(0, len(group), batch_size))


def window_lengths(max_length: int | None, seq_length: int | None, stride: int | None) -> tuple[int, int]:
    """The window and the stride in tokens: what was asked, else the model's own length and half of the window.

    Raises: InputError when the model or the window is too short.
    """
    window = seq_length or max_length
    if window is None:
        raise InputError("perplexity.seq_length: give one; the model's config.json does not say its longest sequence")
    if max_length is not None and window > max_length:
        raise InputError(
            f"perplexity.seq_length: {window} is longer than the model's max_position_embeddings {max_length}"
        )
    step = stride or max(1, window // 2)
    if step >= window:
        raise InputError(f"perplexity.stride: {step} must be below the window of {window} tokens")
    return window, step


def score_documents(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    documents: Sequence[Document],
    seq_length: int,
    stride: int,
    batch_size: int,
    name: str = "model",
) -> TextScore:
    """Scores whole documents by sliding windows of `seq_length` tokens that move by `stride`."""
    import torch

    texts = [document.text for document in documents]
    ids = [torch.tensor(row) for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    num_tokens = sum(len(row) for row in ids)
    bos = beginning_token(tokenizer)
    if bos is not None:
        ids = [torch.cat([torch.tensor([bos]), row]) for row in ids]
    windows = [w for d, row in enumerate(ids) for w in windows_of(d, len(row), seq_length, stride)]
    vocab_size = model.config.get_text_config().vocab_size
    rows = max(1, min(batch_size, LOGITS_BUDGET // (seq_length * vocab_size)))
    batches = list(batches_of(windows, rows))
    nats, num_correct = 0.0, 0
    for batch in progress(batches, total=len(batches), desc=f"{name}: held-out text, batches"):
        batch_nats, batch_correct = _score_batch(model, ids, batch, stride)
        nats, num_correct = nats + batch_nats, num_correct + batch_correct
    num_first = 0 if bos is not None else sum(len(row) > 0 for row in ids)
    return TextScore(
        nats=nats + num_first * math.log(vocab_size),
        num_tokens=num_tokens,
        num_predicted=num_tokens - num_first,
        num_correct=num_correct,
        num_bytes=sum(document.num_bytes for document in documents),
        num_documents=len(documents),
    )


def beginning_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id of the beginning-of-text token, when the tokenizer puts one before every text by itself."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else None


def _score_batch(
    model: "PreTrainedModel", ids: Sequence["torch.Tensor"], batch: Sequence[Window], stride: int
) -> tuple[float, int]:
    """Summed negative log-likelihood in nats and number of right guesses of the scored tokens of a batch."""
    import torch
    from torch.nn import functional as F

    length = max(w.end - w.start for w in batch)
    keep = length if batch[0].start == 0 else stride + 1
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    targets = torch.full((len(batch), length), -100)
    for row, w in enumerate(batch):
        tokens[row, : w.end - w.start] = ids[w.document][w.start : w.end]
        targets[row, w.first_scored - w.start : w.end - w.start] = ids[w.document][w.first_scored : w.end]
    targets = targets[:, length - keep + 1 :].to(model.device)  # (B, keep - 1)
    with torch.inference_mode():
        # Padding is on the right, where a causal model does not look, so no mask is needed.
        output = model(input_ids=tokens.to(model.device), use_cache=False, logits_to_keep=keep)
        logits = output.logits[:, -keep:-1].float()  # (B, keep - 1, V)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
        correct = ((logits.argmax(-1) == targets) & (targets != -100)).sum()
    return nats.item(), int(correct)


def compressed(documents: Sequence[Document]) -> dict[str, dict[str, float]]:
    """Bits per byte of `xz -9` and `bzip2 -9` on all the documents in one file, and on each in a file of its own."""
    texts = [document.text.encode() for document in documents]
    num_bytes = sum(map(len, texts))
    results = {}
    for name, compress in COMPRESSORS.items():
        together = len(compress(b"\n".join(texts)))
        apart = sum(len(compress(text)) for text in texts)
        results[name] = {"bits_per_byte": 8 * together / num_bytes, "bits_per_byte_separately": 8 * apart / num_bytes}
    return results
