"""`ingot inspect data`: what it says about prepared corpora, and about folders that are none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.cli import command
from ingot.data import lengths
from ingot.data.inspect_data import Decoder, inspect_data_command
from ingot.data.inspect_pages import html_page, printable, text_page
from ingot.data.lengths import Lengths
from ingot.data.prepare_data import DataRecipe
from ingot.data.prepare_data import run as prepare_data
from ingot.data.shards import TokenShards, allow_open_files
from ingot.recipe import InputError, build_recipe
from ingot.runs import read_json

from .helpers import sentence, write_jsonl

EVIL = "<script>alert(1)</script> \x1b[31mred\x1b[0m \u202eesrever & <|endoftext|> spelled "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A small corpus with drops of several kinds, masked addresses, a benchmark and held-out documents."""
    place = tmp_path_factory.mktemp("inspected")
    rows = [{"id": f"d{i}", "text": sentence(i, 10 + 4 * i)} for i in range(30)]
    rows += [{"id": "evil", "text": EVIL + sentence(99, 200)}, {"id": "<b>empty</b>", "text": " "}]
    rows += [{"id": "same", "text": rows[3]["text"].upper()}, {"id": "near", "text": f"{rows[20]['text']} indeed"}]
    rows += [{"id": "asked", "text": f"{sentence(50, 20)} {sentence(60, 30)}"}]
    rows += [{"id": "mail", "text": f"{sentence(70, 20)} jane@corp.example.net"}]
    write_jsonl(place / "a.jsonl", rows)
    write_jsonl(place / "quiz.jsonl", [{"question": sentence(60, 30)}])
    data = {
        "tokenizer": str(tokenizer_folder), "sources": [{"path": str(place / "a.jsonl")}], "minhash": True,
        "pii": True, "keep_dropped": True, "split": {"validation": 3, "seed": 4},
        "decontaminate": {"benchmarks": [{"path": str(place / "quiz.jsonl"), "name": "quiz"}]},
    }  # fmt: skip
    run = {"dir": str(place / "run"), "workers": 1}
    prepare_data(build_recipe(DataRecipe, {"data": data, "run": run}))
    return place / "run"


def inspect(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    """What `--json` prints."""
    inspect_data_command([*map(str, words), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def text_of(document: dict[str, Any]) -> str:
    return "".join(piece["text"] for part in document["pieces"] for piece in part if not piece["special"])


def test_counts_are_those_of_the_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, folder)
    results = read_json(folder / "manifest.json")["results"]
    assert found["splits"] == results["splits"] and found["seen_in_training"] == results["seen_in_training"]
    assert found["documents_read"] == 36
    assert found["dropped"] == {"empty": 1, "duplicate": 1, "near_duplicate": 1, "decontaminate: quiz": 1}
    assert found["cleaned"] == {"pii: email": 1}
    assert [row["name"] for row in found["benchmarks"]] == ["quiz"] and "0.72" in found["minhash"]
    (source,) = found["sources"]["largest"]
    assert (source["documents"], source["dropped"], found["sources"]["count"]) == (36, 4, 1)
    assert source["bytes"] == found["sources"]["bytes"] == (folder.parent / "a.jsonl").stat().st_size


def test_dropped_documents_are_shown_by_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = inspect(capsys, folder)["dropped_examples"]
    assert {reason: [row["id"] for row in rows] for reason, rows in examples.items()} == {
        "empty": ["<b>empty</b>"], "duplicate": ["same"], "near_duplicate": ["near"], "decontaminate: quiz": ["asked"],
    }  # fmt: skip
    assert len(examples["near_duplicate"][0]["text"]) <= 504


def test_lengths_and_what_blocks_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = TokenShards(folder, "train")
    tokens = np.array([len(shards.document(i)) for i in range(shards.num_documents)])
    found = inspect(capsys, folder, "--seq-length", 64, 100000)["lengths"]
    assert (found["documents"], found["measured"]) == (len(tokens), len(tokens))
    assert (found["least"], found["most"], found["mean"]) == (tokens.min(), tokens.max(), round(tokens.mean(), 1))
    assert sum(b["documents"] for b in found["histogram"]) == len(tokens)
    for b in found["histogram"]:
        assert b["documents"] == ((tokens >= b["from"]) & (tokens <= b["to"])).sum()
    short, long = found["cut"]
    assert short["best_fit"] == pytest.approx((tokens > 64).mean(), abs=1e-5)
    assert short["concatenate"] == pytest.approx(np.minimum(1, (tokens - 1) / 64).mean(), abs=1e-5)
    assert long["best_fit"] == long["share_of_tokens_in_longer"] == 0


def test_documents_are_decoded_with_their_ids(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, folder, "--samples", 4, "--seed", 1)
    shards = TokenShards(folder, "train")
    texts = [json.loads(line)["text"] for line in (folder.parent / "a.jsonl").read_text().splitlines()]
    assert [d["tokens"] for d in found["longest"]] == sorted((d["tokens"] for d in found["longest"]), reverse=True)
    for document in (*found["samples"], *found["longest"], *found["shortest"]):
        ids = shards.document(document["document"]).tolist()
        assert len(ids) == document["tokens"] and ids[: len(document["ids"][0])] == document["ids"][0]
        assert document["pieces"][-1][-1] == {"text": "<|endoftext|>", "special": True}
        begin = "".join(piece["text"] for piece in document["pieces"][0] if not piece["special"])
        assert any(text.startswith(begin) for text in texts) or "example" in begin
    again = inspect(capsys, folder, "--samples", 4, "--seed", 1)
    assert again == found
    assert inspect(capsys, folder, "--samples", 4, "--seed", 2)["samples"] != found["samples"]
    held_out = inspect(capsys, folder, "--split", "validation", "--samples", 99)
    assert [d["document"] for d in held_out["samples"]] == [0, 1, 2]
    rows = [json.loads(line)["text"] for line in (folder / "validation.jsonl").read_text().splitlines()]
    for row, document in zip(rows, held_out["samples"], strict=True):
        assert row.startswith(text_of({"pieces": document["pieces"][:1]}))


def test_the_place_of_a_document_counts_within_its_shard(tmp_path: Path, prepare: Callable[..., Any]) -> None:
    sources = []
    for name in ("a", "b"):
        rows = [{"text": sentence(i + 100 * (name == "b"), 10)} for i in range(3)]
        sources.append({"path": str(write_jsonl(tmp_path / f"{name}.jsonl", rows))})
    folder, _ = prepare(sources)
    inspect_data_command([str(folder), "--json", "--html", str(tmp_path / "page.html")])
    assert "train-00001, 2" in (tmp_path / "page.html").read_text()


def test_a_text_that_spells_a_special_token_is_not_one(folder: Path) -> None:
    shards = TokenShards(folder, "train")
    decoder, _ = Decoder.find(folder, shards.description, None)
    assert decoder is not None
    (evil,) = (
        pieces
        for i in range(shards.num_documents)
        if "alert" in (pieces := decoder.pieces(shards.document(i).tolist()))[0]["text"]
    )
    assert evil[0]["text"].startswith(EVIL) and [piece["special"] for piece in evil] == [False, True]


def test_what_documents_hold_steers_neither_terminal_nor_browser(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspect(capsys, folder, "--samples", 99)
    page, lines = html_page(found), text_page(found, colour=False)
    assert "alert(1)" in page and "alert(1)" in lines
    assert "<script" not in page and "<b>" not in page and "://" not in page and "<|endoftext|>" not in page
    assert "<mark>&lt;|endoftext|&gt;</mark>" in page and "[[<|endoftext|>]]" in lines
    for text in (page, lines):
        assert "\x1b" not in text and "\u202e" not in text and "\\x1b[31m" in text and "\\u202e" in text
    assert text_page(found, colour=True).replace("\x1b[7m<|endoftext|>\x1b[0m", "").count("\x1b") == 0


def test_printable_leaves_languages_alone() -> None:
    kept = "a\tb\n\u00e9 \u5b57 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680"
    assert printable(kept) == kept
    assert printable("\x00\x9b\u2028\u2066\ue000") == "\\x00\\x9b\\u2028\\u2066\\ue000"


def test_the_page_has_a_picture_and_fits_a_phone(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command(["inspect", "data", str(folder), "--html", str(tmp_path / "a.html")])
    out, page = capsys.readouterr().out, (tmp_path / "a.html").read_text(encoding="utf-8")
    assert out.endswith(f"page: {tmp_path / 'a.html'}\n")
    assert page.startswith("<!doctype html>") and 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert page.count("<rect") == len(inspect(capsys, folder)["lengths"]["histogram"])
    assert "\u2588" in out and "quantiles: 10% " in out and "decontaminate: quiz" in out


def test_verify_reads_every_byte(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    files = read_json(folder / "manifest.json")["files"]
    assert inspect(capsys, copy, "--verify")["verified_files"] == len(files)
    path = copy / "tokens" / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    assert inspect(capsys, copy)["verified_files"] is None
    with pytest.raises(InputError, match=r"train-00000\.bin is not as it was written .*run prepare_data again"):
        inspect_data_command([str(copy), "--verify"])


def test_without_the_tokenizer_there_are_ids(
    folder: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tokenizer_folder), str(tmp_path / "moved")))
    found = inspect(capsys, copy, "--samples", 1)
    assert found["samples"][0]["pieces"] is None and found["samples"][0]["ids"]
    assert "--tokenizer" in found["tokenizer"]["no_text"]
    assert "token ids only" in text_page(found, False) and "token ids only" in html_page(found)
    assert inspect(capsys, copy, "--samples", 1, "--tokenizer", tokenizer_folder)["samples"][0]["pieces"]
    shutil.copytree(tokenizer_folder, tmp_path / "moved")  # beside the data, as in a runs folder that was moved
    assert inspect(capsys, copy, "--samples", 1)["samples"][0]["pieces"]
    file = tmp_path / "moved" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert inspect(capsys, copy, "--samples", 1)["samples"][0]["pieces"] is None
    with pytest.raises(InputError, match="is not the tokenizer that made these tokens"):
        inspect_data_command([str(copy), "--tokenizer", str(tmp_path / "moved")])


def test_an_even_sample_of_very_many_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = TokenShards(folder, "train")
    monkeypatch.setattr(lengths, "MOST", 12)
    monkeypatch.setattr(lengths, "RUN", 3)
    found = Lengths.of(shards)
    total = shards.num_documents
    assert found.documents.tolist() == [
        i + j for i in (0, (total - 3) // 3, (total - 3) * 2 // 3, total - 3) for j in range(3)
    ]
    assert found.tokens.tolist() == [len(shards.document(i)) for i in found.documents]
    described = found.described([64])
    assert (described["measured"], described["documents"]) == (12, total)
    assert found.longest(1)[0] == found.documents[found.tokens.argmax()]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not exist"),
        ({}, "no output of prepare_data"),
        ({"prepare_data/data.json": {}}, r"did you mean .*x/prepare_data\?"),
        ({"manifest.json": {"stage": "sft", "files": {}}}, "is an output of sft"),
        ({"manifest.json": {"stage": "train_tokenizer", "files": {}}}, "ingot inspect tokenizer"),
        ({"manifest.json": []}, "not a record that Ingot wrote"),
        ({"started.json": {"stage": "prepare_data"}}, r"is not finished \(0 tasks tokenised\); continue with: ingot"),
        (
            {"started.json": {"stage": "prepare_data"}, **{f".parts/judged-{i}.json": {} for i in range(3)},
             ".parts/shards-0.json": {}, ".parts/tokenising/failures/1.json": {"message": "a.jsonl:3: bad"}},
            "3 tasks read, 1 of 3 tasks tokenised, stopped by: a.jsonl:3: bad",
        ),
        ({"started.json": {"stage": "prepare_data"}, "manifest.old.json": {}}, "found changed"),
    ],
)  # fmt: skip
def test_other_folders(tmp_path: Path, files: dict[str, Any] | None, message: str) -> None:
    folder = tmp_path / "x"
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    if files is not None:
        folder.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message) as error:
        inspect_data_command([str(folder)])
    assert "\n" not in str(error.value)


def test_an_unfinished_run_continues_with_the_command_that_it_names(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="1 tasks read, 1 of 1 tasks tokenised") as error:
        inspect_data_command([str(copy)])
    words = str(error.value).partition("continue with: ingot ")[2].split()
    command([*words, "--run.dir", str(copy)])
    inspect_data_command([str(copy), "--verify"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--verfy"], r"--verfy: no such option; did you mean --verify\?"),
        (["--split", "vaidation"], "choose from"),
        (["--split", "test"], r"no documents in split 'test'; it has train, validation"),
        (["--samples", "-1"], "at least 0"),
        (["--seq-length", "0"], "at least 1"),
    ],
)
def test_wrong_words(folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspect_data_command([str(folder), *words])


def test_a_damaged_file_of_dropped_documents_is_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "dropped" / "00000.jsonl.zst").write_bytes(b"no zstandard")
    with pytest.raises(InputError, match=r"00000\.jsonl\.zst: cannot be read"):
        inspect_data_command([str(copy)])


def test_a_description_that_is_none_is_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for content in ("[]", "{}", "{"):
        (copy / "data.json").write_text(content)
        with pytest.raises(InputError, match=r"data\.json: "):
            inspect_data_command([str(copy)])


def test_ends_that_cannot_be_are_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (path,) = copy.glob("tokens/train-*.ends")
    good = np.fromfile(path, "<u8")
    for place, value in ((1, 2**62), (1, 0), (len(good) - 1, good[-1] + 1)):
        bad = good.copy()
        bad[place] = value
        bad.tofile(path)
        with pytest.raises(InputError, match=r"train-00000\.ends: is not as it was written; run prepare_data again"):
            inspect_data_command([str(copy)])


def test_a_page_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--html: .*page\.html: cannot be written: No such file or directory"):
        inspect_data_command([str(folder), "--html", str(tmp_path / "none" / "page.html")])


def test_many_shards_raise_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for hard in (2048, 1500, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (1024, hard))
        allow_open_files(600)
    assert asked == [(1624, 2048), (1500, 1500), (1624, resource.RLIM_INFINITY)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 2048))
    with pytest.raises(InputError, match="ulimit -Hn"):
        allow_open_files(2000)
