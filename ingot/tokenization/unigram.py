"""Unigram in SentencePiece's style: whole characters and pieces with probabilities, single bytes for what is rare.

Two things differ from SentencePiece, so that every text decodes to itself. Spaces stay spaces in the pieces: with the
usual sign for a space, a text that holds that sign would come back changed. And special tokens and bytes, which are
entries like all others here, are so unlikely that a text that spells one ("<|pad|>", "<0x41>") never becomes it.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ingot.tokenization.build import PATTERNS, PreTokenizerName, check_reached
from ingot.tokenization.chat_template import PAD, SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Piece = tuple[str, float]  # with the logarithm of its probability

COVERAGE = 0.9995  # share of the text whose characters become entries; the rest is spelt in bytes, as in SentencePiece
MAX_PIECE_LENGTH = 16  # characters
NEVER = -10_000.0  # score of what no text may become: less likely than any spelling of it
ASCII = "".join(map(chr, range(32, 127)))  # always entries, so that every name of a special token can be spelt
EDGE = "\uffff"  # stands between words during training
FREQUENT = 5  # times that a word must come to be considered whole
SPARE = 1.05  # share of pieces that are trained, for some are of no use
ACROSS = re.compile(r"\S ")  # goes from one word into the next
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # the names that the ByteFallback decoder knows
RESERVED = (*SPECIAL_TOKENS, *BYTES)
SMALLEST_UNIGRAM = len(RESERVED) + len(ASCII) + 1


def train_unigram(texts: Callable[[], Iterable[str]], vocab_size: int, pre_tokenizer: PreTokenizerName) -> "Tokenizer":
    """Trains a Unigram model of exactly `vocab_size` entries; the special tokens have the first ids, then the bytes.

    texts: gives the training texts, each time from the start; they are read twice.
    Source: Kudo 2018, "Subword Regularization" (the algorithm); bytes for rare characters as in SentencePiece.
    Raises: InputError when the texts are too few for so many entries.
    """
    free = vocab_size - len(RESERVED)
    characters = common_characters(texts(), free // 2)
    pieces = _train(words_to_learn(texts(), characters, pre_tokenizer), characters, free)
    check_reached(len(RESERVED) + len(pieces), vocab_size)
    return assemble(pieces, pre_tokenizer)


def common_characters(texts: Iterable[str], limit: int) -> str:
    """Printable ASCII and the most frequent characters that make up COVERAGE of the texts, at most `limit`."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    wanted = COVERAGE * counts.total()
    found = set(ASCII)
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if wanted <= 0 or len(found) >= limit:
            break
        wanted -= count
        found.add(character)
    return "".join(sorted(found))


def words_to_learn(texts: Iterable[str], characters: str, pre_tokenizer: PreTokenizerName) -> Iterator[str]:
    """The words of the texts with EDGE between them; other characters than these end a word and are left out.

    The library looks for possible pieces in the list of different words, where even the most frequent word stands
    once, and takes only what it sees twice: without help "children" could never become a piece, only parts of it. So
    every frequent word follows once more at the end, doubled.
    """
    import regex

    rare, cut = re.compile(f"[^{re.escape(characters)}]+"), regex.compile(PATTERNS[pre_tokenizer])
    counts: Counter[str] = Counter()
    for text in texts:
        words = cut.findall(rare.sub(EDGE, text))
        counts.update(words)
        yield EDGE.join(words)
    for word, count in sorted(counts.items()):
        if count >= FREQUENT and 1 < len(word) <= MAX_PIECE_LENGTH:
            yield word + word


def _train(texts: Iterator[str], characters: str, size: int) -> list[Piece]:
    """At most `size` pieces with their scores, likeliest first; the characters are among them.

    The library adds up in no fixed order: scores are rounded and ties broken by name, so that the result is the same
    each time. Characters that it found no use for alone get one common score, below all others.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(EDGE), behavior="removed")
    trainer = trainers.UnigramTrainer(
        vocab_size=round(SPARE * size) + 1,  # with its own entry for the unknown
        unk_token=PAD,
        special_tokens=[PAD],
        initial_alphabet=list(characters),
        max_piece_length=MAX_PIECE_LENGTH,
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = {piece: score for piece, score in _vocabulary(tokenizer) if piece != PAD and not ACROSS.search(piece)}
    least = min((score for piece, score in found.items() if len(piece) > 1), default=0.0)
    scores = {piece: round(score, 6) if score >= least else round(least - 1, 6) for piece, score in found.items()}
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    longer = [piece for piece in ordered if len(piece[0]) > 1][: size - len(characters)]
    return sorted([p for p in ordered if len(p[0]) == 1] + longer, key=lambda item: (-item[1], item[0]))


def _vocabulary(tokenizer: "Tokenizer") -> list[Piece]:
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def _cut(pre_tokenizer: PreTokenizerName) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(PATTERNS[pre_tokenizer]), behavior="isolated")


def assemble(pieces: list[Piece], pre_tokenizer: PreTokenizerName) -> "Tokenizer":
    """The tokenizer whose entries are the special tokens, the bytes and these pieces."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocabulary = [*((name, NEVER) for name in RESERVED), *pieces]
    # the model must have an entry for the unknown, although bytes leave nothing unknown
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=RESERVED.index(PAD), byte_fallback=True))
    tokenizer.pre_tokenizer = _cut(pre_tokenizer)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    return tokenizer
