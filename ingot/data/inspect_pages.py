"""What `ingot inspect data` found, as text for a terminal and as one HTML page.

Documents come from anywhere: what could steer a terminal or a browser is shown, and does nothing.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ingot.tokenization.pages import aligned, html_document, html_table

BAR = 40  # characters of the longest bar
SHOWN_IDS = 24  # of a document on the terminal
SHOWN_TEXT = 300  # characters of a dropped document on the terminal
REVERSE, RESET = "\x1b[7m", "\x1b[0m"
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # categories of characters that are written as their numbers
HARMLESS = {"\n", "\t", "\u200c", "\u200d"}  # among them those that scripts and emoji need
STYLE = """<style>
svg { width: 100%; max-width: 46rem; height: auto } svg rect { fill: var(--bar) }
svg text { fill: var(--text); font: 13px system-ui, sans-serif }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.6 ui-monospace, monospace; margin: .3rem 0;
  unicode-bidi: isolate }
mark { background: #ffe6b8; color: #1c2430; border-radius: 3px; padding: 0 .2rem }
summary { cursor: pointer }
</style>"""
Rows = list[list[str]]


def printable(text: str) -> str:
    """The text with control characters, marks that turn the direction of writing and the like as `\\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in HARMLESS or unicodedata.category(c) not in UNSEEN else ascii(c)[1:-1] for c in text)


def text_page(found: Mapping[str, Any], colour: bool) -> str:
    """The page for a terminal; without `colour` special tokens stand in double brackets."""
    blocks = [
        [printable(line) for line in head(found)],
        aligned(splits_table(found)),
        [*aligned(sources_table(found)), *map(printable, sources_note(found))],
        _dropped_text(found),
        _cleaned_text(found),
        _lengths_text(found),
        *([[no_text(found)]] if no_text(found) else []),
        *(_documents_text(title, documents, colour) for title, documents in shown_documents(found)),
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def head(found: Mapping[str, Any]) -> Iterator[str]:
    """What the folder is, in lines."""
    tokenizer = found["tokenizer"]
    size = "two" if tokenizer["dtype"] == "<u2" else "four"
    yield (
        f"{found['folder']}: {found['documents_read']:,} documents read in {found['seconds']:,.0f} s, "
        f"{sum(found['dropped'].values()):,} dropped"
    )
    yield (
        f"tokenizer {tokenizer['sha256'][:12]} of {tokenizer['entries']:,} entries, {size} bytes a token, "
        f"documents end with token {tokenizer['end_of_document']}"
    )
    if found["verified_files"] is not None:
        yield f"verified: all {found['verified_files']:,} files are as they were written"


def splits_table(found: Mapping[str, Any]) -> Rows:
    """Counts of every split; the first row is the header."""
    rows = [["split", "documents", "bytes", "tokens", "bytes per token", "seen in training"]]
    for name, entry in found["splits"].items():
        seen = found["seen_in_training"].get(name)
        overlap = "" if seen is None else f"{seen['mean']:.2%}, at most {seen['largest']:.2%}"
        per_token = f"{entry['bytes_per_token']:.3f}" if entry["documents"] else ""
        counts = [f"{entry[key]:,}" for key in ("documents", "bytes", "tokens")]
        rows.append([name, *counts, per_token, overlap])
    return rows


def sources_table(found: Mapping[str, Any]) -> Rows:
    """The sources with the most documents, and all together; the first row is the header."""
    sources = found["sources"]
    rows = [["source", "files", "bytes", "documents", "dropped"]]
    rows += [_source_row(_ending(row["name"]), row["files"], row) for row in sources["largest"]]
    if sources["rows"] != 1:
        total = {**sources, "dropped": sum(found["dropped"].values())}
        rows.append(_source_row("all", sources["count"], total))
    return rows


def _source_row(name: str, files: int, row: Mapping[str, Any]) -> list[str]:
    size = "n/a" if row["bytes"] is None else f"{row['bytes']:,}" + (" known" if row["without_bytes"] else "")
    return [name, f"{files:,}", size, f"{row['documents']:,}", f"{row['dropped']:,}"]


def sources_note(found: Mapping[str, Any]) -> list[str]:
    """What the table of sources leaves out."""
    sources = found["sources"]
    if not sources["count"]:
        return ["This folder was written by a version that did not describe the sources."]
    left = sources["rows"] - len(sources["largest"])
    more = [f"{left:,} more folders"] if left else []
    return [*more, "data.json describes every file"] if sources["rows"] < sources["count"] or left else []


def _ending(name: str) -> str:
    """The end of a long path says most."""
    shown = printable(name)
    return shown if len(shown) <= 60 else f"...{shown[-57:]}"


def dropped_table(found: Mapping[str, Any]) -> Rows:
    """Reasons with their counts and shares, the most frequent first; the first row is the header."""
    rows = [["dropped because", "documents", "of those read"]]
    for reason, number in sorted(found["dropped"].items(), key=lambda item: -item[1]):
        rows.append([printable(reason), f"{number:,}", f"{number / max(1, found['documents_read']):.2%}"])
    return rows


def _dropped_text(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["dropped"]:
        yield "dropped: none"
    else:
        yield from aligned(dropped_table(found))
    yield from filter_notes(found)
    for reason, examples in found["dropped_examples"].items():
        text = printable(" ".join(examples[0]["text"].split()))
        yield f"- {printable(reason)}: {printable(examples[0]['id'])}: {text[:SHOWN_TEXT]}"


def filter_notes(found: Mapping[str, Any]) -> Iterator[str]:
    """How duplicates and benchmarks were looked for."""
    dropped = found["dropped"]
    if found["minhash"] is not None:
        yield f"{dropped.get('near_duplicate', 0):,} dropped as {printable(found['minhash'])}"
    for row in found["benchmarks"]:
        yield printable(
            f"benchmark {row['name']}: {dropped.get('decontaminate: ' + row['name'], 0):,} documents dropped; "
            f"{row['rows_long_enough']:,} of its {row['rows']:,} rows are long enough to be found"
        )
    if dropped and not found["dropped_examples"]:
        yield "data.keep_dropped: true in the recipe keeps dropped documents to look at"


def cleaned_table(found: Mapping[str, Any]) -> Rows:
    """What was changed in documents that are kept; the first row is the header."""
    return [["changed in kept documents", "times"], *([printable(k), f"{n:,}"] for k, n in found["cleaned"].items())]


def _cleaned_text(found: Mapping[str, Any]) -> Iterator[str]:
    yield from aligned(cleaned_table(found)) if found["cleaned"] else ["changed in kept documents: nothing"]


def lengths_line(found: Mapping[str, Any]) -> str:
    """Mean and quantiles in words."""
    lengths = found["lengths"]
    quantiles = ", ".join(f"{share} {tokens:,}" for share, tokens in lengths["quantiles"].items())
    sampled = (
        f"; measured on {lengths['measured']:,} of {lengths['documents']:,} documents, evenly spread"
        if lengths["measured"] < lengths["documents"]
        else ""
    )
    return (
        f"tokens per {found['split']} document, end token included: mean {lengths['mean']:,.0f}, "
        f"from {lengths['least']:,} to {lengths['most']:,}; quantiles: {quantiles}{sampled}"
    )


def cut_table(found: Mapping[str, Any]) -> Rows:
    """What blocks of several lengths cut; the first row is the header."""
    rows = [["seq_length", "best_fit cuts", "concatenate cuts", "tokens in longer documents"]]
    for row in found["lengths"]["cut"]:
        shares = [f"{row[key]:.1%}" for key in ("best_fit", "concatenate", "share_of_tokens_in_longer")]
        rows.append([f"{row['seq_length']:,}", *shares])
    return rows


def _lengths_text(found: Mapping[str, Any]) -> Iterator[str]:
    histogram = found["lengths"]["histogram"]
    most = max(bin["documents"] for bin in histogram)
    yield lengths_line(found)
    rows = [["tokens", "documents", "share", "of the tokens"]]
    rows += [
        [_range(b), f"{b['documents']:,}", f"{b['share_of_documents']:.1%}", f"{b['share_of_tokens']:.1%}"]
        for b in histogram
    ]
    bars = ["", *(_bar(b["documents"] / most) for b in histogram)]
    yield from (f"{line}  {bar}".rstrip() for line, bar in zip(aligned(rows), bars, strict=True))
    yield ""
    yield from aligned(cut_table(found))


def _range(bin: Mapping[str, Any]) -> str:
    return f"{bin['from']:,}-{bin['to']:,}" if bin["to"] > bin["from"] else f"{bin['from']:,}"


def _bar(share: float) -> str:
    """A bar of eighths of characters; what is not nothing is seen."""
    eighths = round(share * BAR * 8)
    if share > 0:
        eighths = max(1, eighths)
    return "\u2588" * (eighths // 8) + ("" if eighths % 8 == 0 else chr(0x2590 - eighths % 8))


def shown_documents(found: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """The groups of documents that a page shows, with their titles."""
    split, lengths = found["split"], found["lengths"]
    of = " of those measured" if lengths["measured"] < lengths["documents"] else ""
    return [
        (f"Longest {split} documents{of}", found["longest"]),
        (f"Shortest {split} documents{of}", found["shortest"]),
        (f"Random {split} documents (seed {found['seed']})", found["samples"]),
    ]


def no_text(found: Mapping[str, Any]) -> str:
    """Why documents are shown as ids only; empty when they are not."""
    reason = found["tokenizer"]["no_text"]
    return "" if reason is None else f"token ids only: {printable(reason)}"


def place_of(document: Mapping[str, Any]) -> str:
    """Where a document is."""
    return (
        f"document {document['document']:,} ({document['shard']}, {document['in_shard']:,}), "
        f"{document['tokens']:,} tokens"
    )


def _documents_text(title: str, documents: Sequence[Mapping[str, Any]], colour: bool) -> Iterator[str]:
    yield f"== {title} =="
    for document in documents:
        yield f"-- {place_of(document)}"
        yield from _ids_lines(document)
        if document["pieces"] is not None:
            yield "\n   [...]\n".join("".join(_painted(p, colour) for p in part) for part in document["pieces"])


def _ids_lines(document: Mapping[str, Any]) -> Iterator[str]:
    ids = document["ids"]
    first = " ".join(map(str, ids[0][:SHOWN_IDS]))
    left = len(ids[0]) > SHOWN_IDS or len(ids) > 1
    yield f"   ids: {first}{' ... ' + str(ids[-1][-1]) if left else ''}"


def _painted(piece: Mapping[str, Any], colour: bool) -> str:
    text = printable(piece["text"])
    if not piece["special"]:
        return text
    return f"{REVERSE}{text}{RESET}" if colour else f"[[{text}]]"


def html_page(found: Mapping[str, Any]) -> str:
    """One page without scripts and without anything from elsewhere."""
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in filter_notes(found))
    parts = [
        STYLE + f"<h1>{escape(printable(found['folder']))}</h1>",
        "".join(f"<p>{escape(printable(line))}</p>" for line in head(found)),
        "<h2>Splits</h2>" + html_table(splits_table(found)),
        "<p class=note>Seen in training: the share of 16-token spans that training documents hold too.</p>",
        "<h2>Sources</h2>" + html_table(sources_table(found)),
        "".join(f"<p class=note>{escape(note)}</p>" for note in sources_note(found)),
        "<h2>Dropped</h2>" + (html_table(dropped_table(found)) if found["dropped"] else "<p>none</p>") + notes,
        "".join(_examples_html(reason, rows) for reason, rows in found["dropped_examples"].items()),
        "<h2>Changed in kept documents</h2>",
        html_table(cleaned_table(found)) if found["cleaned"] else "<p>nothing</p>",
        f"<h2>Lengths</h2><p>{escape(lengths_line(found))}</p>" + histogram_svg(found["lengths"]["histogram"]),
        html_table(cut_table(found)),
        f"<p>{escape(no_text(found))}</p>",
        *(_documents_html(title, documents) for title, documents in shown_documents(found)),
    ]
    return html_document(f"Data {printable(found['folder'])}", "".join(parts))


def _examples_html(reason: str, examples: Sequence[Mapping[str, str]]) -> str:
    shown = "".join(
        f"<p class=note>{escape(printable(row['id']))}</p><pre dir=auto>{escape(printable(row['text']))}</pre>"
        for row in examples
    )
    return f"<details><summary>{escape(printable(reason))}</summary>{shown}</details>"


def histogram_svg(histogram: Sequence[Mapping[str, Any]]) -> str:
    """A picture of the histogram: one bar a line, so that it is readable on a narrow screen."""
    most = max(bin["documents"] for bin in histogram)
    lines = []
    for i, bin in enumerate(histogram):
        y, width = 22 * i, 300 * bin["documents"] / most
        lines.append(
            f'<text x="120" y="{y + 15}" text-anchor="end">{_range(bin)}</text>'
            f'<rect x="128" y="{y + 3}" width="{width:.1f}" height="16"/>'
            f'<text x="{134 + width:.1f}" y="{y + 15}">{bin["documents"]:,}</text>'
        )
    height = 22 * len(histogram)
    return (
        f'<svg viewBox="0 0 520 {height}" role="img" aria-label="documents by their number of tokens">'
        f"{''.join(lines)}</svg>"
    )


def _documents_html(title: str, documents: Sequence[Mapping[str, Any]]) -> str:
    return f"<h2>{escape(title)}</h2>" + "".join(_document_html(document) for document in documents)


def _document_html(document: Mapping[str, Any]) -> str:
    ids = " ... ".join(" ".join(map(str, part)) for part in document["ids"])
    text = ""
    if document["pieces"] is not None:
        parts = ("".join(_marked(piece) for piece in part) for part in document["pieces"])
        text = f"<pre dir=auto>{'<br>[...]<br>'.join(parts)}</pre>"
    return (
        f"<h3>{escape(place_of(document))}</h3>{text}"
        f"<details><summary class=note>token ids</summary><code>{ids}</code></details>"
    )


def _marked(piece: Mapping[str, Any]) -> str:
    text = escape(printable(piece["text"]))
    return f"<mark>{text}</mark>" if piece["special"] else text
