"""Bits per byte against a calculation by hand, every token counted once, and the compressors."""

import bz2
import lzma
import math
from collections import Counter
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from ingot.evaluation.documents import Document
from ingot.evaluation.perplexity import batches_of, compressed, score_documents, window_lengths, windows_of
from ingot.recipe import InputError

from .conftest import VOCABULARY, make_model, text_of

DOCUMENTS = [Document(str(n), text_of(n, n)) for n in (30, 1, 90, 12)]


@pytest.mark.parametrize("seq_length,stride", [(8, 4), (8, 7), (8, 1), (50, 25), (2, 1)])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 8, 9, 31])
def test_every_token_but_the_first_is_scored_once(num_tokens: int, seq_length: int, stride: int) -> None:
    windows = list(windows_of(0, num_tokens, seq_length, stride))
    scored = Counter(i for w in windows for i in range(w.first_scored, w.end))
    assert scored == Counter(range(1, num_tokens))
    for w in windows:
        assert 0 <= w.start < w.first_scored < w.end <= num_tokens and w.end - w.start <= seq_length
        if w.start > 0:
            assert w.end - w.start == seq_length and w.first_scored - w.start >= seq_length - stride


def test_batches_hold_every_window_once_and_keep_first_windows_apart() -> None:
    windows = [w for d, n in enumerate((5, 40, 9)) for w in windows_of(d, n, 8, 4)]
    batches = list(batches_of(windows, 3))
    assert Counter(w for batch in batches for w in batch) == Counter(windows)
    assert all(len(batch) <= 3 and len({w.start == 0 for w in batch}) == 1 for batch in batches)


def test_uniform_model_needs_the_logarithm_of_the_vocabulary_for_every_token(tokenizer: Any) -> None:
    model = make_model(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    results = score_documents(model, tokenizer, DOCUMENTS, 32, 16, 4).results()
    num_tokens = sum(len(tokenizer(d.text).input_ids) for d in DOCUMENTS)
    num_bytes = sum(len(d.text.encode()) for d in DOCUMENTS)
    assert (results["tokens"], results["bytes"], results["documents"]) == (num_tokens, num_bytes, 4)
    assert results["nats_per_token"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert results["bits_per_byte"] == pytest.approx(math.log2(VOCABULARY) * num_tokens / num_bytes, rel=1e-6)
    assert results["perplexity"] == pytest.approx(VOCABULARY, rel=1e-5)


@pytest.mark.parametrize("seq_length,stride", [(32, 16), (16, 3)])
def test_score_is_the_sum_over_windows_run_one_at_a_time(tokenizer: Any, seq_length: int, stride: int) -> None:
    model, nats, correct = make_model(), 0.0, 0
    for document in DOCUMENTS:
        ids = torch.tensor(tokenizer(document.text).input_ids)
        nats += math.log(VOCABULARY)
        for w in windows_of(0, len(ids), seq_length, stride):
            log_probs = model(ids[None, w.start : w.end]).logits[0].log_softmax(-1)
            for i in range(w.first_scored, w.end):
                nats -= log_probs[i - 1 - w.start, ids[i]].item()
                correct += int(log_probs[i - 1 - w.start].argmax() == ids[i])
    score = score_documents(model, tokenizer, DOCUMENTS, seq_length, stride, 3)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.num_correct == correct
    assert score.num_predicted == score.num_tokens - len(DOCUMENTS)


def test_batch_size_does_not_change_the_score(tokenizer: Any) -> None:
    scores = [score_documents(make_model(), tokenizer, DOCUMENTS, 16, 8, size).nats for size in (1, 5, 100)]
    assert scores[1:] == pytest.approx(scores[:1] * 2, rel=1e-5)


def test_a_large_vocabulary_is_scored_in_smaller_batches(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score_documents(make_model(), tokenizer, DOCUMENTS, 16, 8, 4).nats
    model, sizes = make_model(), []
    model.register_forward_pre_hook(lambda _, args, named: sizes.append(len(named["input_ids"])), with_kwargs=True)
    monkeypatch.setattr("ingot.evaluation.perplexity.LOGITS_BUDGET", 2 * 16 * VOCABULARY)
    assert score_documents(model, tokenizer, DOCUMENTS, 16, 8, 4).nats == pytest.approx(expected, rel=1e-5)
    assert max(sizes) == 2


def test_a_beginning_token_of_the_tokenizer_gives_the_first_token_a_context(tokenizer: Any) -> None:
    with_bos = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer.__class__.from_str(
        tokenizer.backend_tokenizer.to_str()), bos_token="<|endoftext|>")  # fmt: skip
    post = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    with_bos.backend_tokenizer.post_processor = post
    model, text = make_model(), DOCUMENTS[3].text
    ids = torch.tensor([0, *tokenizer(text).input_ids])
    log_probs = model(ids[None]).logits[0].log_softmax(-1)
    expected = -sum(log_probs[i - 1, ids[i]].item() for i in range(1, len(ids)))
    score = score_documents(model, with_bos, [DOCUMENTS[3]], 32, 16, 4)
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert (score.num_tokens, score.num_predicted) == (len(ids) - 1, len(ids) - 1)


def test_compressors_get_all_documents_in_one_file_and_also_each_alone() -> None:
    texts = [d.text.encode() for d in DOCUMENTS]
    num_bytes, joined = sum(map(len, texts)), b"\n".join(texts)
    found = compressed(DOCUMENTS)
    assert found["xz"]["bits_per_byte"] == 8 * len(lzma.compress(joined, preset=9)) / num_bytes
    assert found["bz2"]["bits_per_byte"] == 8 * len(bz2.compress(joined, 9)) / num_bytes
    assert found["bz2"]["bits_per_byte_separately"] == 8 * sum(len(bz2.compress(t, 9)) for t in texts) / num_bytes


def test_window_lengths_follow_the_model_and_refuse_what_does_not_fit() -> None:
    assert window_lengths(256, None, None) == (256, 128)
    assert window_lengths(256, 64, 48) == (64, 48)
    with pytest.raises(InputError, match="512 is longer than the model's max_position_embeddings 256"):
        window_lengths(256, 512, None)
    with pytest.raises(InputError, match="perplexity.stride: 64 must be below the window of 64"):
        window_lengths(None, 64, 64)
    with pytest.raises(InputError, match="perplexity.seq_length: give one"):
        window_lengths(None, None, None)
