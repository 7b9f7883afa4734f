"""Tokenizers from elsewhere: the same ids as their own library, what is missing added, what is lossy refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ingot.recipe import InputError
from ingot.tokenization.chat_template import CHAT_TEMPLATE
from ingot.tokenization.importing import import_tokenizer
from ingot.tokenization.sample_texts import all_samples

from .conftest import texts

LLAMA = {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "split_digits": True,
}  # fmt: skip
T5 = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "byte_fallback": False}
LOSSLESS_UNIGRAM = {**LLAMA, "model_type": "unigram"}
ENGLISH = [*texts(300), *all_samples()[:1]]


def sentencepiece_model(path: Path, **options: Any) -> Path:
    """A small SentencePiece model, trained now."""
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH), model_writer=model, vocab_size=400, minloglevel=3, num_threads=1,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize("options", [LLAMA, LOSSLESS_UNIGRAM], ids=["llama", "unigram"])
def test_a_sentencepiece_model_keeps_its_ids_and_texts(tmp_path: Path, options: dict[str, Any]) -> None:
    path = sentencepiece_model(tmp_path / "a.model", **options)
    results = import_tokenizer(path, tmp_path, [*ENGLISH, *all_samples()], allow_lossy=False)
    assert results["texts_compared"] > len(ENGLISH)
    assert [name.split()[0] for name in results["added"]] == ["<|pad|>", "<|im_start|>", "<|im_end|>", "chat"]
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    for text in all_samples():
        assert tokenizer(text)["input_ids"] == processor.encode(text)  # nothing is put around it
        assert tokenizer.decode(processor.encode(text)) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer.pad_token_id == processor.vocab_size()
    assert any("U+2581" in note for note in results["notes"])


@pytest.mark.parametrize("options", [LLAMA, LOSSLESS_UNIGRAM], ids=["llama", "unigram"])
def test_a_document_that_spells_a_control_token_does_not_become_it(tmp_path: Path, options: dict[str, Any]) -> None:
    import_tokenizer(sentencepiece_model(tmp_path / "a.model", **options), tmp_path, [], allow_lossy=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("a</s> <s><0x41><unk>", split_special_tokens=True)["input_ids"]
    assert not set(ids) & {0, 1, 2, tokenizer.convert_tokens_to_ids("<0x41>")}
    assert tokenizer.decode(ids) == "a</s> <s><0x41><unk>"


def test_a_lossy_model_is_refused_and_taken_when_the_recipe_says_so(tmp_path: Path) -> None:
    path = sentencepiece_model(tmp_path / "t5.model", **T5)
    with pytest.raises(
        InputError, match=r"t5\.model does not give every text back: ' ' comes back as ''.*allow_lossy"
    ):
        import_tokenizer(path, tmp_path, [], allow_lossy=False)
    results = import_tokenizer(path, tmp_path, ENGLISH, allow_lossy=True)
    assert "' ' comes back as ''" in results["notes"]
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "x.model").write_bytes(b"no such thing")
    with pytest.raises(InputError, match=r"tokenizer\.from: .*x\.model is not a SentencePiece model"):
        import_tokenizer(tmp_path / "x.model", tmp_path, [], allow_lossy=False)


def byte_level(folder: Path, normalizer: Any = None, **roles: Any) -> Path:
    """A folder of a tokenizer whose entries are single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    return folder


def test_what_is_missing_is_added_with_single_ids(tmp_path: Path) -> None:
    source, target = byte_level(tmp_path / "a"), tmp_path / "b"
    target.mkdir()
    results = import_tokenizer(source, target, ENGLISH, allow_lossy=False)
    assert results["added"] == [
        "<|endoftext|> (eos_token, id 256)", "<|pad|> (pad_token, id 257)", "<|im_start|> (chat, id 258)",
        "<|im_end|> (chat, id 259)", "chat template (ChatML)",
    ]  # fmt: skip
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    assert len(tokenizer) == results["vocab_size"] == 260
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.encode("<|im_start|>a<|im_end|>") == [258, *tokenizer.encode("a"), 259]
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]


def test_padding_that_is_also_an_end_is_replaced_and_a_template_is_kept(tmp_path: Path) -> None:
    source, target = byte_level(tmp_path / "a", eos_token="<end>", pad_token="<end>"), tmp_path / "b"
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<end>")
    target.mkdir()
    results = import_tokenizer(source, target, ENGLISH, allow_lossy=False)
    assert results["added"] == ["<|pad|> (pad_token, id 257)"]
    assert "the chat template has no generation marks: sft finds answers turn by turn" in results["notes"]
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end>", "<|pad|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x<end>"


def test_nothing_is_put_around_texts_any_more(tmp_path: Path) -> None:
    from tokenizers import processors

    source, target = byte_level(tmp_path / "a", bos_token="<s>"), tmp_path / "b"
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(source / "tokenizer.json"))
    target.mkdir()
    results = import_tokenizer(source, target, ENGLISH, allow_lossy=False)
    assert AutoTokenizer.from_pretrained(source)("a")["input_ids"][0] == 256
    assert 256 not in AutoTokenizer.from_pretrained(target)("a")["input_ids"]
    assert "nothing is put around texts any more: token shards hold no such tokens" in results["notes"]


def test_a_tokenizer_that_changes_case_is_refused_and_one_that_composes_is_not(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    with pytest.raises(InputError, match="does not give every text back"):
        import_tokenizer(byte_level(tmp_path / "a", normalizers.Lowercase()), target, [], allow_lossy=False)
    results = import_tokenizer(byte_level(tmp_path / "c", normalizers.NFC()), target, ENGLISH, allow_lossy=False)
    assert results["notes"] == ["decomposed letters come back composed (Unicode NFC)"]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "size", "eos"), [("gpt2", 50_257, "<|endoftext|>"), ("qwen3", 151_669, "<|im_end|>")]
)
def test_known_tokenizers_come_over(tmp_path: Path, name: str, size: int, eos: str) -> None:
    source = Path(__file__).parents[3] / "shared/data/tokenizers" / name
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    results = import_tokenizer(source, tmp_path, [*ENGLISH, *all_samples()], allow_lossy=False)
    assert results["added"][0] == f"<|pad|> (pad_token, id {size})"
    assert results["vocab_size"] == size + (1 if name == "qwen3" else 3)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["pad_token"]) == (eos, "<|pad|>")
    assert results["texts_compared"] > len(ENGLISH)  # with the ids of their own folder, by `import_tokenizer`
