"""Every recipe fragment of docs/data_order.md is one that pretraining takes."""

import re
from pathlib import Path

import pytest

from ingot.recipe_yaml import parse_yaml
from ingot.training.pretrain import PretrainData

PAGE = Path(__file__).parent.parent.parent / "docs/data_order.md"
FRAGMENTS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(4))
def test_the_fragment_loads(number: int) -> None:
    assert len(FRAGMENTS) == 4
    data = PretrainData.model_validate(parse_yaml(FRAGMENTS[number], "page")["data"])
    assert list(data.problems()) == [] and data.seq_length == 2048
    assert [source.label for _, source in data.sources()] in (["prepare_data"], ["books", "web"])
