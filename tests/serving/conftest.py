"""A tiny random model in a folder, a scripted model that says what a test wants, and servers over them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from serving_helpers import Script, serving
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ingot.serving.engine import EmbeddedEngine
from ingot.serving.loading import LoadedModel, load_model
from ingot.serving.text import TextCodec
from ingot.tokenization.build import save_tokenizer, train_bpe
from modeling import IngotConfig, IngotForCausalLM

WORDS = ["Hello there, how are you today?", "The cat sat on the mat. 🙂", "user assistant system être naïve 日本"]
CONTEXT = 96


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's client refuses every address, this machine's too, when the hub is switched off for the tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub-format folder with a random Ingot model and a byte-level tokenizer with the chat template."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    folder.mkdir()
    tokenizer = train_bpe(iter(WORDS * 3), 320, "qwen2")
    save_tokenizer(tokenizer, folder, "qwen2")
    torch.manual_seed(0)
    config = IngotConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        eos_token_id=0, pad_token_id=3, bos_token_id=None, initializer_range=0.4,
    )  # fmt: skip
    model = IngotForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[0, 2], pad_token_id=3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(model_path: Path) -> LoadedModel:
    """The tiny model, loaded the way `ingot serve` does."""
    return load_model(model_path)


@pytest.fixture(scope="session")
def tokenizer(loaded: LoadedModel) -> PreTrainedTokenizerBase:
    """The tiny model's tokenizer."""
    return loaded.codec.tokenizer


@pytest.fixture
def script(tokenizer: PreTrainedTokenizerBase) -> Script:
    """A fresh scripted model."""
    return Script(len(tokenizer))


@pytest.fixture
def scripted(script: Script, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """The scripted model, as if loaded."""
    codec = TextCodec(tokenizer, [0, 2])
    return LoadedModel("script", script, codec, frozenset([0, 2]), CONTEXT, chats=True)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def engine(loaded: LoadedModel) -> Iterator[EmbeddedEngine]:
    """An engine over the tiny model."""
    engine = EmbeddedEngine(loaded)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def url(engine: EmbeddedEngine) -> Iterator[str]:
    """A server over the tiny model."""
    with serving(engine) as address:
        yield address


@pytest.fixture
def say(script: Script, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Makes the scripted model say a text and end; returns the ids it will say."""

    def set_answer(text: str) -> list[int]:
        script.answer = [*tokenizer(text)["input_ids"], 2]
        return script.answer

    return set_answer


@pytest.fixture
def scripted_engine(scripted: LoadedModel, script: Script) -> Iterator[EmbeddedEngine]:
    """An engine over the scripted model with two places and room for one more."""
    engine = EmbeddedEngine(scripted, max_active=2, max_waiting=1)
    yield engine
    script.gate.set()
    engine.close()


@pytest.fixture
def scripted_url(scripted_engine: EmbeddedEngine) -> Iterator[str]:
    """A server over the scripted model."""
    with serving(scripted_engine) as address:
        yield address
