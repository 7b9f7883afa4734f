"""What is read from upstream's source text is what an import gives."""

import dataclasses
import importlib

import pytest

from ingot.upstream import SOURCES, fields_of


@pytest.mark.parametrize("upstream", sorted(SOURCES))
def test_fields_are_those_of_the_imported_class(upstream: str) -> None:
    module, name = upstream.rsplit(".", 1)
    imported = {f.name for f in dataclasses.fields(getattr(importlib.import_module(module), name)) if f.init}
    read = set(fields_of(upstream))
    assert read <= imported
    inherited = {} if upstream != "modeling.IngotConfig" else imported - read  # PreTrainedConfig's own
    assert imported - read == set(inherited)


def test_enums_become_their_values() -> None:
    assert "cosine" in str(fields_of("transformers.TrainingArguments")["lr_scheduler_type"])


def test_unknown_package_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "absent.X", [("absent_package/x.py", "X")])
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        fields_of("absent.X")
