"""Every message that docs/troubleshooting.md quotes is one that the code prints, and every symptom has its section."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
SECTIONS = (
    "Out of memory", "Full disk", "Vocabulary mismatch", "The chat template differs", "Generation never stops", "NaN",
    "Loss spikes", "Wrong results, loss too high", "Slow", "The GPU is not used", "Hangs", "One process dies",
    "Resume is refused", "A damaged checkpoint", "Import errors",
)  # fmt: skip
GAP = "\0"  # what a message fills in


@cache
def printed() -> str:
    """Every text in the source, what it fills in left out; parts of one text on several lines are joined."""
    texts = []
    for folder in ("ingot", "modeling"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(v.value) if isinstance(v, ast.Constant) else GAP for v in node.values]
                    texts.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(re.sub(r"%[-.\d]*[sdf]", GAP, node.value))
    return "\n".join(texts)


def messages() -> list[str]:
    """The lines of the page's text blocks."""
    return [line for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().split("\n")]


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_in_the_source(message: str) -> None:
    parts = [part for part in re.split(r"\.\.\.", message) if re.search(r"\w{3}", part)]
    assert parts, "nothing but gaps"
    for part in parts:
        assert part.strip(" :;,") in printed(), part


def test_every_symptom_has_a_section_with_a_command_and_a_place_in_the_list() -> None:
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert set(SECTIONS) <= set(titles)
    head = " ".join(PAGE.split("\n## ")[0].split())
    for title, section in zip(titles, PAGE.split("\n## ")[1:], strict=True):
        anchor = re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        assert f"(#{anchor})" in head, title
        assert "```bash" in section or "`ingot " in section, title


def test_links_lead_somewhere() -> None:
    titles = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in re.findall(r"^#+ (.*)$", PAGE, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in titles, target
        else:
            assert (ROOT / "docs" / target).is_file(), target
