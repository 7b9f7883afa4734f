"""`ingot inspect data`: what a folder of prepare_data holds, what was dropped on the way, and how its texts look."""

import io
import json
import random
from argparse import Namespace
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from ingot.data.inspect_pages import html_page, text_page
from ingot.data.lengths import Lengths
from ingot.data.parts import WORK
from ingot.data.shards import DESCRIPTION, TokenShards
from ingot.data.splits import SPLITS
from ingot.planning.arguments import Parser, count, number
from ingot.recipe import InputError
from ingot.recipe_yaml import parse_yaml
from ingot.runs import DOUBTED, MANIFEST, STARTED, read_json, read_manifest, sha256_file, verify
from ingot.tokenization.pages import present

STAGE = "prepare_data"
SEQ_LENGTHS = (512, 1024, 2048, 4096)
SHOWN_SOURCES = 20  # those with the most documents
HEAD, TAIL = 96, 8  # tokens of a document that are shown
CHARACTERS = 500  # of a shown text, at most
EXTREMES = 3  # longest and shortest documents
EXAMPLES = 3  # dropped documents of each reason
LOOKED_AT = 20_000  # dropped documents that are read to find them
LOOKED_AT_CHARACTERS = 50_000_000


def inspect_data_command(arguments: Sequence[str]) -> None:
    """Does what the words after `ingot inspect data` say.

    Raises: InputError in one line that names the word, the folder or the file.
    """
    words = parse(arguments)
    present(describe(words), words, html_page, text_page)


def parse(arguments: Sequence[str]) -> Namespace:
    """The words, checked.

    Raises: InputError for a word that is not known.
    """
    parser = Parser(
        prog="ingot inspect data",
        description="A prepared corpus: sources, counts, what was dropped and why, lengths, random documents.",
        allow_abbrev=False,
    )
    natural = number(least=0, whole=True)
    parser.add_argument("folder", type=Path, help="folder that prepare_data wrote")
    parser.add_argument("--split", choices=SPLITS, default="train", help="whose documents; default %(default)s")
    parser.add_argument("--samples", type=natural, default=5, help="random documents to show; default %(default)s")
    parser.add_argument("--seed", type=natural, default=0, help="of their choice; default %(default)s")
    parser.add_argument(
        "--seq-length", type=count, nargs="+", default=SEQ_LENGTHS,
        help="how many documents blocks of so many tokens cut; default: 512 to 4096",
    )  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, help="its folder; default: the one that the recipe names")
    parser.add_argument("--verify", action="store_true", help="read every file again and compare its sha256")
    parser.add_argument("--html", type=Path, help="write a page")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser.parse_all(arguments)


def describe(words: Namespace) -> dict[str, Any]:
    """Everything about a folder, as plain values for JSON and for pages; memory does not grow with the corpus.

    Raises: InputError when it is no finished folder of prepare_data, or not as it was written.
    """
    folder: Path = words.folder
    manifest = refuse_unfinished(folder)
    if words.verify and (changed := verify(folder)):
        raise InputError(f"{changed}; run prepare_data again, it makes anew what has changed")
    shards = TokenShards(folder, words.split)
    summary, results = shards.description, manifest["results"]
    decoder, why_not = Decoder.find(folder, summary, words.tokenizer)
    lengths = Lengths.of(shards)
    look = _Look(shards, words.split, decoder)
    return {
        "folder": str(folder),
        "seconds": manifest["seconds"],
        "versions": manifest["versions"],
        "verified_files": len(manifest["files"]) if words.verify else None,
        "splits": results["splits"],
        "documents_read": summary["documents_read"],
        "dropped": summary["dropped"],
        "dropped_examples": dropped_examples(folder, summary["dropped"]),
        "cleaned": summary.get("cleaned", {}),
        "minhash": _minhash(manifest["recipe"]),
        "benchmarks": summary.get("benchmarks", []),
        "seen_in_training": results.get("seen_in_training", {}),
        "sources": _sources(summary.get("sources", [])),
        "tokenizer": {
            "sha256": summary["tokenizer_sha256"], "entries": shards.vocab_size, "dtype": str(summary["dtype"]),
            "end_of_document": shards.end_of_document, "no_text": why_not,
        },
        "split": words.split,
        "lengths": lengths.described(words.seq_length),
        "longest": [look.at(i) for i in lengths.longest(EXTREMES)],
        "shortest": [look.at(i) for i in lengths.shortest(EXTREMES)],
        "samples": [look.at(i) for i in draw(shards, words.samples, words.seed)],
        "seed": words.seed,
    }  # fmt: skip


def refuse_unfinished(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises: InputError that says what the folder is instead, and what of it is done.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is a file' if folder.exists() else 'does not exist'}; name a run of {STAGE}")
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if manifest["stage"] == "train_tokenizer":
            raise InputError(f"{folder}: is a tokenizer; look at it with: ingot inspect tokenizer {folder}")
        if manifest["stage"] != STAGE:
            raise InputError(f"{folder}: is an output of {manifest['stage']}; name one of {STAGE}")
        return manifest
    if (folder / STARTED).is_file() and read_json(folder / STARTED).get("stage") == STAGE:
        raise InputError(f"{folder}: is not finished ({progress_of(folder)}); continue with: {_command(folder)}")
    inside = folder / STAGE
    hint = f"did you mean {inside}?" if (inside / DESCRIPTION).is_file() else f"name a run of {STAGE}"
    raise InputError(f"{folder}: no output of {STAGE} (no {MANIFEST}); {hint}")


def _command(folder: Path) -> str:
    return f"ingot {STAGE} --config {folder / 'recipe.yaml'}"


def progress_of(folder: Path) -> str:
    """What an unfinished run has done so far, and what stopped it where that is known."""
    if (folder / DOUBTED).is_file():
        return "a file of the finished result was found changed; only that is made again"
    done = {kind: len(list((folder / WORK).glob(f"{kind}-*.json"))) for kind in ("judged", "shards")}
    said = [f"{done['judged']:,} tasks read"] if done["judged"] else []
    of = f" of {done['judged']:,}" if done["judged"] else ""
    said.append(f"{done['shards']:,}{of} tasks tokenised")
    failures = sorted((folder / WORK).glob("*/failures/*.json"))
    said += [f"stopped by: {read_json(path)['message']}" for path in failures[:1]]
    return ", ".join(said)


def _sources(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals, and the sources with the most documents, by folder where there are many; data.json has each of them."""
    by_folder = len(sources) > SHOWN_SOURCES
    rows: dict[str, dict[str, Any]] = {}
    for source in sources:
        name = source["name"].rpartition("/")[0] + "/" if by_folder else source["name"]
        row = rows.setdefault(
            name, {"name": name, "files": 0, "bytes": None, "without_bytes": 0, "documents": 0, "dropped": 0}
        )
        row["files"] += 1
        if source.get("bytes") is None:
            row["without_bytes"] += 1
        else:
            row["bytes"] = (row["bytes"] or 0) + source["bytes"]
        row["documents"] += source["documents"]
        row["dropped"] += sum(source["dropped"].values())
    known = [row["bytes"] for row in rows.values() if row["bytes"] is not None]
    return {
        "count": len(sources),
        "rows": len(rows),
        "bytes": sum(known) if known else None,
        "without_bytes": sum(row["without_bytes"] for row in rows.values()),
        "documents": sum(row["documents"] for row in rows.values()),
        "largest": sorted(rows.values(), key=lambda row: -row["documents"])[:SHOWN_SOURCES],
    }


def _minhash(recipe: Mapping[str, Any]) -> str | None:
    """What the numbers of the near-duplicate search mean, where there was one."""
    from ingot.data.cleaning.section import Minhash

    asked = recipe["data"].get("minhash")
    return None if asked is None else Minhash.model_validate(asked).in_words()


def dropped_examples(folder: Path, dropped: Mapping[str, int]) -> dict[str, list[dict[str, str]]]:
    """The first EXAMPLES dropped documents of each reason, where `keep_dropped` wrote them."""
    found: dict[str, list[dict[str, str]]] = {}
    missing = {reason: min(EXAMPLES, number) for reason, number in dropped.items()}
    for row in _kept_drops(folder):
        if missing.get(row["reason"], 0) > 0:
            missing[row["reason"]] -= 1
            shown = {"id": row["id"][:CHARACTERS], "text": _shortened(row["text"])}
            found.setdefault(row["reason"], []).append(shown)
            if not any(missing.values()):
                break
    return found


def _kept_drops(folder: Path) -> Iterator[dict[str, str]]:
    """Dropped documents, the first of every file, so that many files have their say."""
    import zstandard

    paths = sorted((folder / "dropped").glob("*.jsonl.zst"))
    characters, each = LOOKED_AT_CHARACTERS, -(-LOOKED_AT // max(1, len(paths)))
    for path in paths[:LOOKED_AT]:
        try:
            with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as packed:
                for line in islice(io.TextIOWrapper(packed, encoding="utf-8"), each):
                    characters -= len(line)
                    yield json.loads(line)
                    if characters < 0:
                        return
        except (zstandard.ZstdError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}; --verify says which files have changed") from None


def _shortened(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " ..."


def draw(shards: TokenShards, size: int, seed: int) -> list[int]:
    """Numbers of documents, each as likely as any other, none twice."""
    return sorted(random.Random(seed).sample(range(shards.num_documents), min(size, shards.num_documents)))


class Decoder:
    """The tokenizer of a folder, to show its ids as text; special tokens stay apart from text that spells them."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(file))
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {i: token.content for i, token in added.items() if token.special}

    @classmethod
    def find(cls, folder: Path, summary: Mapping[str, Any], named: Path | None) -> tuple["Decoder | None", str | None]:
        """The tokenizer that made the tokens, or why there is none.

        Raises: InputError when the one that was named is another.
        """
        asked = parse_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder / "recipe.yaml"))
        path = named or Path(asked["data"]["tokenizer"])
        places = [path] if named else [path, folder.parent / path.name]
        for file in (place / "tokenizer.json" for place in places):
            if file.is_file() and sha256_file(file) == summary["tokenizer_sha256"]:
                return cls(file), None
        if named is not None:
            raise InputError(
                f"--tokenizer: {named} is not the tokenizer that made these tokens; its sha256 is another"
            )
        return None, f"{path} is gone or has changed; name the tokenizer that made these tokens with --tokenizer"

    def pieces(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Text and special tokens, one after another."""
        found: list[dict[str, Any]] = []
        run: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in self.special:
                run.append(token)
                continue
            if run:
                found.append({"text": str(self.tokenizer.decode(run, skip_special_tokens=False)), "special": False})
                run = []
            if token is not None:
                found.append({"text": self.special[token], "special": True})
        return found


class _Look:
    """Documents of a split as they are shown: beginning and end, as text and as ids."""

    def __init__(self, shards: TokenShards, split: str, decoder: Decoder | None) -> None:
        self.shards, self.decoder = shards, decoder
        described = shards.description["splits"][split]["shards"]
        self.names = [shard["name"] for shard in described]
        self.first = list(accumulate((shard["documents"] for shard in described), initial=0))

    def at(self, index: int) -> dict[str, Any]:
        """Document number `index` of the split; a long one without its middle."""
        shard = bisect_right(self.first, index) - 1
        ids = self.shards.document(index)
        cut = len(ids) > HEAD + TAIL
        parts = [ids[:HEAD].tolist(), ids[-TAIL:].tolist()] if cut else [ids.tolist()]
        return {
            "document": index,
            "shard": self.names[shard],
            "in_shard": index - self.first[shard],
            "tokens": len(ids),
            "ids": parts,
            "pieces": None if self.decoder is None else [self._pieces(part) for part in parts],
        }

    def _pieces(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        assert self.decoder is not None
        return [{**piece, "text": _shortened(piece["text"])} for piece in self.decoder.pieces(ids)]
