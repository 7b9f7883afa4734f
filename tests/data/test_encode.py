"""Tokenising in batches: the same ids as one text at a time, whatever is cut where."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ingot.data import encode
from ingot.data.encode import Encoder, TooLongToTokenise, can_be_cut, cut

from .helpers import sentence

# everything that the regexes treat in a way of its own, in every neighbourhood
ALPHABET = [
    "a", "Z", "é", "ſ", "中", "文", "か", "カ", "ー", "1", "22", "333", "²", " ", "  ", "   ", "\n",
    "\n\n", "\r\n", "\t",
    " \n ", "。", "，", "、", ".", ",", "!?", "...", "'s", "'S", "'ll", "'", "’", "-", "(", ")", "\u0301", "\u3099",
    "\u00a0", "\u3000", "\u200b", "🙂", "<|endoftext|>", "_", "{", "}",
]  # fmt: skip


def byte_level(split: str | None, normalizer: Any = None) -> Tokenizer:
    """A byte-level BPE trained on mixed text; `split` is its regex, None the one of GPT-2 inside ByteLevel."""
    tokenizer = Tokenizer(models.BPE())
    steps = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([mixed(seed, 300) for seed in range(30)], trainer)
    return tokenizer


def mixed(seed: int, size: int) -> str:
    """Text in which every kind of character stands beside every other."""
    drawn = random.Random(seed)
    return "".join(drawn.choice([*ALPHABET, sentence(seed, 3)]) for _ in range(size))


@pytest.fixture(params=[None, *sorted(encode.SAFE_REGEXES)], ids=["gpt2_byte_level", "a", "b", "c", "d"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return byte_level(request.param, normalizers.NFC())


def test_cutting_changes_no_token(tokenizer: Tokenizer) -> None:
    tokenizer.encode_special_tokens = True
    assert can_be_cut(json.loads(tokenizer.to_str()))
    for seed in range(300):
        text = mixed(seed, 200)
        pieces = list(cut(text, 20))
        assert "".join(pieces) == text
        ids = [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False).ids]
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids, repr(text)
    assert len(pieces) > 5


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_cutting_changes_no_token_of_known_tokenizers(name: str) -> None:
    path = Path(__file__).parents[3] / "shared/data/tokenizers" / name / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    assert can_be_cut(json.loads(path.read_text()))
    for seed in range(100):
        text = mixed(seed, 200)
        ids = [i for piece in cut(text, 20) for i in tokenizer.encode(piece, add_special_tokens=False).ids]
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Prepend", "prepend": "_"}},
        {"added_tokens": [{"content": "a b", "special": False, "lstrip": False, "rstrip": False}]},
        {"added_tokens": [{"content": "ab", "special": False, "lstrip": False, "rstrip": True}]},
    ],
)
def test_what_is_not_known_to_be_safe_is_not_cut(change: dict[str, Any]) -> None:
    known = json.loads(byte_level(None).to_str())
    assert can_be_cut(known)
    assert not can_be_cut({**known, **change})


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_give_the_ids_of_single_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, threads: int
) -> None:
    monkeypatch.setattr(encode, "BATCH_BYTES", 300)
    monkeypatch.setattr(encode, "PIECE", 50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = [(seed % 3, mixed(seed, 1 + seed * 7 % 90)) for seed in range(60)] + [(1, ""), (2, "a" * 1000)]
    encoder = Encoder(tmp_path / "tokenizer.json", 0, np.dtype("<u2"), threads)
    found: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}
    rest: dict[int, list[int]] = {0: [], 1: [], 2: []}
    num_bytes = 0
    for stream, ids, ends, size in encoder.encode(texts):
        begin, num_bytes = 0, num_bytes + size
        for end in ends.tolist():
            found[stream].append(rest[stream] + ids[begin:end].tolist())
            begin, rest[stream] = end, []
        rest[stream] += ids[begin:].tolist()
    assert not any(rest.values())
    assert num_bytes == sum(len(text.encode()) for _, text in texts)
    tokenizer.encode_special_tokens = True
    for stream, documents in found.items():
        wanted = [[*tokenizer.encode(t, add_special_tokens=False).ids, 0] for s, t in texts if s == stream]
        assert documents == wanted


def test_a_document_without_a_place_to_cut_is_refused_before_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "LONGEST", 1000)
    byte_level(None).save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(tmp_path / "tokenizer.json", 0, np.dtype("<u2"), 1)
    with pytest.raises(TooLongToTokenise, match=r"1,001 characters without a place to cut \('xxx.*max_characters"):
        list(encoder.encode([(0, "x" * 1001)]))
