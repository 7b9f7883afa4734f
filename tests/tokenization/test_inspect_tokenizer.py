"""`ingot inspect tokenizer`: its words, its pages and its JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from ingot.recipe import InputError
from ingot.tokenization import inspect_tokenizer
from ingot.tokenization.inspect import Subject, Text, describe
from ingot.tokenization.inspect_tokenizer import inspect_tokenizer_command, known_folders
from ingot.tokenization.pages import BACKGROUNDS, html_page, text_page


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    inspect_tokenizer_command([str(word) for word in words])
    return capsys.readouterr().out


def test_the_page(capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "some words"}) + "\n")
    out = run(capsys, folders["qwen2"], "--text", file, "--against", folders["gpt2"])
    lines = out.splitlines()
    assert "BPE, 512 entries, llama.cpp calls its pre-tokenizer qwen2" in lines[0]
    english = next(line.split() for line in lines if line.startswith("English"))
    assert len(english) == 6 and english[1] == "198"
    assert any(line.startswith("rows.jsonl") for line in lines)
    assert "special and added tokens: 0 <|endoftext|> = eos, 1 <|im_start|>, 2 <|im_end|>, 3 <|pad|> = pad" in out
    assert "'<|im_start|>'=1" in out and "\x1b[" not in out


def test_json_is_json_and_nothing_else(capsys: pytest.CaptureFixture[str], folders: dict[str, Path]) -> None:
    found = json.loads(run(capsys, folders["qwen2"], "--against", "--json"))
    assert found["entries"] == 512 and found["against"] == []


def test_html_shows_every_token_with_its_ids(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    out = run(capsys, folders["qwen2"], "--against", "--html", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert f"page: {tmp_path / 'a.html'}" in out
    assert page.startswith("<!doctype html>") and "<script" not in page and "://" not in page
    assert '<span style="background:#cfe3ff" title="1">&lt;|im_start|&gt;</span>' in page


def test_what_a_text_holds_cannot_become_markup_or_terminal_codes(folders: dict[str, Path]) -> None:
    found = describe(Subject(folders["qwen2"]), [], [Text("<b>x", "file", ["<script>\x1b[31m & \n"])])
    page = html_page(found)
    assert "<script" not in page and "<b>" not in page and "&lt;b&gt;x" in page
    painted = text_page(found, colour=True)
    assert "\x1b[31m" not in painted and BACKGROUNDS[0] in painted


def test_known_tokenizers_are_found_beside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared/data/tokenizers/qwen3"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(inspect_tokenizer, "__file__", str(tmp_path / "elsewhere/a/b/c/d.py"))
    assert list(known_folders()) == [folder]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ingot inspect tokenizer: .*folder"),
        (["x", "--jsn"], "--jsn: no such option; did you mean --json"),
        (["nowhere", "--against"], "nowhere: no such folder; name a run of train_tokenizer"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspect_tokenizer_command(words)


def test_a_text_that_is_not_there(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no file matches nothing.txt"):
        inspect_tokenizer_command([str(folders["qwen2"]), "--text", "nothing.txt"])
