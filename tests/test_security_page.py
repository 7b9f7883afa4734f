"""Every claim of docs/security.md names a test that exists; its commands are commands."""

import re
from pathlib import Path

import pytest

from ingot.cli import STAGES, TOOLS
from ingot.faults.suite import CASES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("named", sorted(set(re.findall(r"tests/[\w/]+\.py::test_\w+", PAGE))))
def test_a_named_test_exists(named: str) -> None:
    file, name = named.split("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_named_commands_and_cases_exist() -> None:
    commands = set(re.findall(r"\bingot (\w+)", PAGE))
    assert "verify" in commands and commands <= {*STAGES, *TOOLS, "verify", "faults"}
    cases = set(re.findall(r"ingot faults --only (\w+)", PAGE))
    assert cases == {"checkpoint_mutations", "input_mutations"} and cases <= set(CASES)


def test_every_section_of_claims_has_its_proof() -> None:
    for section in PAGE.split("\n## ")[2:-1]:
        assert "tests/" in section or "ingot faults" in section, section.split("\n")[0]
