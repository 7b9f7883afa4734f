"""The grid: sizes that hardware likes, near the optimum, ranked."""

import pytest

from ingot.planning.architecture import architecture_of_config
from ingot.planning.flops import training_flops_per_token
from ingot.planning.grid import Shape, search, shapes
from ingot.planning.scaling import LAWS
from ingot.recipe import InputError
from modeling import IngotConfig


def test_every_size_is_a_multiple_of_128_and_every_shape_can_be_built() -> None:
    found = list(shapes(moe=True))
    for shape in found:
        sizes = (shape.hidden_size, shape.intermediate_size, shape.num_attention_heads * shape.head_dim)
        assert all(size % 128 == 0 for size in (*sizes, shape.moe_intermediate_size))
        assert shape.num_attention_heads % shape.num_key_value_heads == 0
        assert shape.num_hidden_layers >= 4 and shape.num_experts_per_tok <= shape.num_experts
    assert len({shape.num_experts for shape in found}) == 4 and len(found) == len(set(found))
    shape = next(s for s in found if s.num_experts == 16 and s.hidden_size == 1024)
    values = dict(vars(shape).items())
    config = IngotConfig(vocab_size=1024, **values)
    assert architecture_of_config(config).total == shape.architecture(1024, tied=False).total


def test_candidates_are_ranked_and_spend_the_budget() -> None:
    law = LAWS["besiroglu"]
    found = search(1.36e21, law, 151_936, 2048)
    best = law.optimum(1.36e21)
    assert [c.loss for c in found] == sorted(c.loss for c in found)
    assert found[0].loss == pytest.approx(best.loss, rel=0.005)  # the table of the input tokens costs no arithmetic
    for candidate in found:
        assert candidate.tokens * training_flops_per_token(candidate.architecture, 2048) == pytest.approx(1.36e21)
        assert 0.5 <= candidate.architecture.total / best.parameters <= 2
    places = [(c.shape.hidden_size, c.shape.num_hidden_layers) for c in found]
    assert len(places) == len(set(places)) > 20


def test_mixtures_are_judged_by_what_a_token_meets() -> None:
    found = search(1e20, LAWS["besiroglu"], 32_768, 2048, moe=True)
    sparse = [c for c in found if c.shape.num_experts]
    assert sparse and all(c.architecture.active < c.architecture.total for c in sparse)


def test_a_budget_outside_the_grid_and_a_law_without_a_loss_are_refused() -> None:
    with pytest.raises(InputError, match="no shape of the grid"):
        search(1e12, LAWS["besiroglu"], 151_936, 2048)
    with pytest.raises(InputError, match="rule_of_thumb predicts no loss"):
        search(1.36e21, LAWS["rule_of_thumb"], 151_936, 2048)


def test_a_shape_is_described_with_qk_norm() -> None:
    shape = Shape(1024, 12, 8, 4, 128, 3072)
    config = IngotConfig(vocab_size=32_768, **{k: v for k, v in vars(shape).items() if v})
    assert shape.architecture(32_768, tied=False).parameters == architecture_of_config(config).parameters
