"""Cached, static-cached and uncached generation agree, padded rows equal single ones, and every decoding mode runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

Make = Callable[..., Any]


def test_cache_changes_nothing(tiny: Make, tokens: Make, kind: dict[str, Any]) -> None:
    model, ids = tiny(**kind), tokens(2, 7)
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True}
    cached = model.generate(ids, **settings)
    uncached = model.generate(ids, use_cache=False, **settings)
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **settings)
    assert cached.sequences.shape == (2, 19)
    for other in (uncached, static):
        assert torch.equal(cached.sequences, other.sequences)
        torch.testing.assert_close(torch.stack(cached.logits), torch.stack(other.logits), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("static", [False, True])
def test_chunked_prefill(tiny: Make, tokens: Make, kind: dict[str, Any], backend: str, static: bool) -> None:
    model, ids = tiny(**kind, attn_implementation=backend), tokens(2, 14)
    cache = StaticCache(config=model.config, max_cache_len=20) if static else DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        pieces = [model(piece, past_key_values=cache, use_cache=True).logits for piece in ids.split((6, 5, 1, 2), 1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_left_padding_changes_nothing(tiny: Make, tokens: Make, kind: dict[str, Any], backend: str) -> None:
    model = tiny(**kind, attn_implementation=backend)
    short, long = tokens(1, 5, seed=1), tokens(1, 9, seed=2)
    padded = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1), long])
    mask = torch.ones_like(padded)
    mask[0, :4] = 0
    settings = {"max_new_tokens": 8, "min_new_tokens": 8}
    together = model.generate(padded, attention_mask=mask, **settings)[:, 9:]
    assert torch.equal(together[0], model.generate(short, **settings)[0, 5:])
    assert torch.equal(together[1], model.generate(long, **settings)[0, 9:])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True, "top_k": 5, "temperature": 0.7},
        {"do_sample": True, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
        {"num_beams": 3},
        {"num_beams": 3, "do_sample": True},
        {"num_beams": 2, "num_return_sequences": 2, "early_stopping": True},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5},
    ],
    ids=str,
)
def test_decoding_modes(tiny: Make, tokens: Make, settings: dict[str, Any]) -> None:
    model, ids = tiny(), tokens(1, 8)
    torch.manual_seed(0)
    text = model.generate(ids, max_new_tokens=10, min_new_tokens=10, **settings)
    assert text.shape == (settings.get("num_return_sequences", 1), 18)
    assert torch.equal(text[:1, :8], ids)
    if "prompt_lookup_num_tokens" in settings:  # speculation must not change greedy text
        assert torch.equal(text, model.generate(ids, max_new_tokens=10, min_new_tokens=10))


def test_assisted_generation_equals_greedy(tiny: Make, tokens: Make, kind: dict[str, Any]) -> None:
    model, ids = tiny(**kind), tokens(1, 8)
    assistant = tiny(num_hidden_layers=1)
    settings = {"max_new_tokens": 12, "min_new_tokens": 12}
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **settings), expected)


def test_continuous_batching_equals_generate(tiny: Make, tokens: Make) -> None:
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    model = tiny()
    prompts = [tokens(1, length, seed=length) for length in (5, 11, 3)]
    generation = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=-1)
    expected = [model.generate(prompt, generation_config=generation)[0, prompt.shape[1] :] for prompt in prompts]
    batching = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    results = model.generate_batch(
        [prompt[0].tolist() for prompt in prompts],
        generation_config=generation,
        continuous_batching_config=batching,
        progress_bar=False,
    )
    assert [result.generated_tokens for result in results.values()] == [ids.tolist() for ids in expected]


def test_logits_to_keep(tiny: Make, tokens: Make) -> None:
    model, ids = tiny(), tokens(2, 9)
    with torch.no_grad():
        everything = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=1).logits, everything[:, -1:])
        torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([2, 5])).logits, everything[:, [2, 5]])
        with_loss = model(ids, labels=ids, logits_to_keep=3)
    torch.testing.assert_close(with_loss.logits, everything[:, -3:])
    torch.testing.assert_close(with_loss.loss, model(ids, labels=ids).loss)


def test_alibi_is_refused_by_backends_that_cannot_add_it(tiny: Make, tokens: Make) -> None:
    model = tiny(position_embedding_type="alibi", attn_implementation="flex_attention")
    with pytest.raises(ValueError, match="alibi.*flex_attention"):
        model(tokens(1, 4))


def test_inputs_must_be_ids_or_embeddings(tiny: Make, tokens: Make) -> None:
    model, ids = tiny(), tokens(1, 4)
    embedded = model.model.embed_tokens(ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(ids).logits)
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(input_ids=ids, inputs_embeds=embedded)


def test_learned_positions_end(tiny: Make, tokens: Make) -> None:
    model = tiny(position_embedding_type="learned", max_position_embeddings=8)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        model(tokens(1, 9))
