"""A SentencePiece `.model` file as a tokenizer of the tokenizers library, with the same ids.

Pieces and merges are read by transformers' own extractor; what the model does to white space comes from its own
settings, which transformers' converters replace by those of the one model that each is for.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.recipe import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\u2581"  # stands for a space in pieces
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type
FROM_TEXT = (NORMAL, USER_DEFINED)  # the types that a text can become


@dataclass(frozen=True)
class SentencePieceModel:
    """The converted tokenizer, the names of its special tokens, and SentencePiece's own encoder and scores."""

    tokenizer: "Tokenizer"
    names: dict[str, str]  # role (bos, eos, pad, unk) -> piece, for the roles that the model has
    encode: Callable[[str], list[int]]
    score: Callable[[list[int]], float] | None  # of a way to cut a text, where the likeliest is taken (Unigram)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Converts a BPE model (such as Llama 2's) or a Unigram model (such as T5's).

    Raises: InputError when the file is not such a model, or packages are missing.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import SentencePieceProcessor
        from transformers.convert_slow_tokenizer import SentencePieceExtractor
    except ImportError as error:
        raise InputError(
            f"tokenizer.from: reading {path} needs the packages sentencepiece and protobuf ({error}); "
            "install them with: pip install -e '.[sentencepiece]'"
        ) from None
    try:
        extractor = SentencePieceExtractor(str(path))
        processor = SentencePieceProcessor(model_file=str(path))
    except (DecodeError, RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"tokenizer.from: {path} is not a SentencePiece model: {reason}") from None
    proto = extractor.proto
    if proto.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise InputError(f"tokenizer.from: {path} is neither a BPE nor a Unigram model; such models are not read")

    def score(ids: list[int]) -> float:
        return float(sum(processor.get_score(i) for i in ids))

    unigram = proto.trainer_spec.model_type == UNIGRAM
    converted = _convert(extractor, processor)
    return SentencePieceModel(converted, _names(proto), processor.encode, score if unigram else None)


def _names(proto: Any) -> dict[str, str]:
    spec = proto.trainer_spec
    ids = {"bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id, "unk": spec.unk_id}
    return {role: proto.pieces[i].piece for role, i in ids.items() if 0 <= i < len(proto.pieces)}


def _convert(extractor: Any, processor: Any) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    proto = extractor.proto
    spec, steps = proto.trainer_spec, []
    if not any(SPACE in p.piece.lstrip(SPACE) for p in proto.pieces if p.type == NORMAL):
        steps.append(_words())
    if spec.model_type == UNIGRAM:
        vocabulary = [(p.piece, p.score) for p in proto.pieces]
        tokenizer = Tokenizer(models.Unigram(vocabulary, spec.unk_id, byte_fallback=spec.byte_fallback))
        steps.append(_never_whole(proto, processor))
    else:
        tokenizer = Tokenizer(_bpe(extractor))
    normalizer = _normalizer(proto.normalizer_spec)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if steps:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = _decoder(proto)
    for piece in proto.pieces:
        if piece.type in (CONTROL, UNKNOWN, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(piece.piece, special=piece.type != USER_DEFINED, normalized=False)])
    return tokenizer


def _bpe(extractor: Any) -> Any:
    """The merges, without those that would make a control piece out of a text that spells it."""
    from tokenizers import models

    found, proto = extractor.extract(models.BPE), extractor.proto
    reserved = {p.piece for p in proto.pieces if p.type not in FROM_TEXT}
    merges = [(left, right) for left, right in found["merges"] if left + right not in reserved]
    spec = proto.trainer_spec
    return models.BPE(
        found["vocab"], merges, unk_token=spec.unk_piece, fuse_unk=True, byte_fallback=spec.byte_fallback
    )


def _never_whole(proto: Any, processor: Any) -> Any:
    """Cuts a text that spells a control or byte piece, such as <s> or <0x41>, where SentencePiece would cut it.

    The library's Unigram would take it for the piece itself.
    """
    from tokenizers import Regex, pre_tokenizers

    found = []
    for name in (p.piece for p in proto.pieces if p.type not in FROM_TEXT):
        spelt = [piece.lstrip(SPACE) for piece in processor.encode(name, out_type=str)]
        first = next((piece for piece in spelt if piece), name)
        first = first if name.startswith(first) and first != name else name[0]
        found.append(f"{re.escape(first)}(?={re.escape(name[len(first) :])})")
    return pre_tokenizers.Split(Regex("|".join(found)), behavior="isolated")


def _normalizer(spec: Any) -> Any:
    """What happens to the text before it is cut: characters mapped, spaces made single, one put in front."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps) if steps else None


def _words() -> Any:
    """Cuts before runs of spaces, where no piece goes across: the same ids, found faster."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), behavior="isolated")


def _decoder(proto: Any) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(SPACE, " ")]
    if proto.trainer_spec.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
