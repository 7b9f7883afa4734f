"""What `ingot inspect tokenizer` found, as text for a terminal and as one HTML page."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from ingot.recipe import InputError
from ingot.runs import write_text

WIDTH = 110  # characters of a line
SHOWN_PIECES = 60  # tokens of a sample on the terminal
BACKGROUNDS = ("\x1b[48;5;24m", "\x1b[48;5;58m", "\x1b[48;5;54m", "\x1b[48;5;23m")  # dark blue, olive, plum, teal
RESET = "\x1b[0m"
COLOURS = ("#cfe3ff", "#ffe6b8", "#d9f2d0", "#f3d4f1")
STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --page: #fff; --line: #dde3ea; --code: #f1f4f8; --note: #5a6675;
  --bar: #2b6cb0 }
@media (prefers-color-scheme: dark) {
  :root { --text: #dce3ec; --page: #12161c; --line: #323b47; --code: #222a34; --note: #98a4b3; --bar: #63a0e0 }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: var(--text); background: var(--page); overflow-wrap: anywhere }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; overflow-wrap: normal }
td, th { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right }
td:first-child, th:first-child { text-align: left }
.cut { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.cut span { border-radius: 3px; color: #1c2430 }
code { background: var(--code); padding: 0 .25rem; border-radius: 3px; white-space: pre-wrap }
.note { color: var(--note) }
"""
# nothing is loaded from elsewhere and no script runs, whatever a text holds
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def text_page(found: dict[str, Any], colour: bool) -> str:
    """The page for a terminal; without `colour` the tokens of the samples are separated by bars."""
    blocks = [
        _head(found),
        _table_text(found),
        _longest_text(found),
        _unused_text(found),
        _special_text(found),
        _chat_text(found),
        *(_sample_text(sample, colour) for sample in found["samples"]),
    ]
    return "\n\n".join(blocks)


def _head(found: dict[str, Any]) -> str:
    known = found["llama_cpp_pre_tokenizer"]
    name = f", llama.cpp calls its pre-tokenizer {known}" if known else ""
    return f"{found['tokenizer']}: {found['model']}, {found['entries']:,} entries{name}"


def table(found: dict[str, Any]) -> list[list[str]]:
    """Bytes per token and tokens per word by text, beside the others; the first row is the header."""
    others = found["against"]
    header = [
        "",
        "bytes",
        "bytes per token",
        "tokens per word",
        *others,
        *(f"tokens against {name}" for name in others),
    ]
    rows = [header]
    for row in found["texts"]:
        sign = " *" if row["words_are_characters"] else ""
        fertility = [f"{row['against'][name]['tokens_per_word']:.2f}{sign}" for name in others]
        ratio = [f"{row['tokens'] / max(1, row['against'][name]['tokens']):.2f}" for name in others]
        ours = [f"{row['bytes']:,}", f"{row['bytes_per_token']:.2f}", f"{row['tokens_per_word']:.2f}{sign}"]
        rows.append([row["name"], *ours, *fertility, *ratio])
    return rows


def _table_text(found: dict[str, Any]) -> str:
    return "\n".join([*aligned(table(found)), note(found)])


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines with columns of equal width, the first flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(cells)).rstrip()


def note(found: dict[str, Any]) -> str:
    """What the columns of the table mean."""
    names = " and ".join(found["against"])
    beside = (
        f" Under {names}: their tokens per word; 'tokens against' below 1 means fewer tokens here." if names else ""
    )
    return f"* per character: written without spaces.{beside}"


def _longest_text(found: dict[str, Any]) -> str:
    entries = [f"{entry['id']} {_short(entry['text'])}" for entry in found["longest"]]
    return _wrapped("longest entries: ", entries)


def _unused_text(found: dict[str, Any]) -> str:
    unused = found["unused"]
    entries = [f"{entry['id']} {_short(entry['text'])}" for entry in unused["examples"]]
    size = sum(row["bytes"] for row in found["texts"])
    lines = [
        _wrapped(
            f"not used in these {size:,} bytes: {unused['count']:,} entries ({unused['share']:.1%}), such as ", entries
        )
    ]
    never = unused["unreachable"]
    if never:
        shown = [f"{entry['id']} {_short(entry['text'])}" for entry in never[:10]]
        lines.append(_wrapped(f"cut otherwise when they stand alone: {len(never):,} entries, such as ", shown))
    return "\n".join(lines)


def _special_text(found: dict[str, Any]) -> str:
    entries = [f"{t['id']} {t['token']}{' = ' + t['role'] if t['role'] else ''}" for t in found["special_tokens"]]
    return _wrapped("special and added tokens: ", entries)


def _chat_text(found: dict[str, Any]) -> str:
    chat = found["chat"]
    if chat is None:
        return "chat template: none"
    if "refused" in chat:
        return f"chat template: refuses a system, a user and an assistant turn: {chat['refused']}"
    pairs = [f"{token!r}={i}" for token, i in zip(chat["tokens"], chat["ids"], strict=True)]
    return "chat template, with token ids:\n" + chat["text"].rstrip("\n") + "\n" + _wrapped("", pairs)


def _sample_text(sample: dict[str, Any], colour: bool) -> str:
    shown = sample["pieces"][:SHOWN_PIECES]
    more = " ..." if len(sample["pieces"]) > SHOWN_PIECES else ""
    title = f"{sample['name']}:\n"
    if not colour:
        return title + "|".join(piece["text"] for piece in shown) + more
    painted = [BACKGROUNDS[i % len(BACKGROUNDS)] + _painted(piece["text"]) + RESET for i, piece in enumerate(shown)]
    return title + "".join(painted) + more


def _painted(text: str) -> str:
    """A line end keeps the colour from running to the edge of the terminal."""
    return text.replace("\x1b", "\u241b").replace("\n", f"{RESET}\n")


def _short(text: str) -> str:
    """An entry in quotes; the middle of a long one is left out."""
    shown = repr(text)
    return shown if len(shown) <= 32 else f"{shown[:20]}...{shown[-8:]} ({len(text)} characters)"


def _wrapped(title: str, entries: Sequence[str]) -> str:
    """Entries one after another in lines of WIDTH."""
    lines, line = [], title
    for number, entry in enumerate(entries):
        addition = entry + (", " if number + 1 < len(entries) else "")
        if line.strip() and len(line) + len(addition) > WIDTH:
            lines.append(line.rstrip())
            line = "  "
        line += addition
    return "\n".join([*lines, line.rstrip()])


def html_page(found: dict[str, Any]) -> str:
    """One page without scripts and without anything from elsewhere; pointing at a piece shows its ids."""
    unused = found["unused"]
    parts = [
        f"<h1>{escape(found['name'])}</h1><p>{escape(_head(found))}</p>",
        f"<h2>How it packs text</h2>{html_table(table(found))}<p class=note>{escape(note(found))}</p>",
        "<h2>Samples</h2>" + "".join(_sample_html(sample) for sample in found["samples"]),
        "<h2>Longest entries</h2>" + _entries_html(found["longest"]),
        f"<h2>Not used in these texts: {unused['count']:,} entries ({unused['share']:.1%}), such as</h2>"
        + _entries_html(unused["examples"]),
        "<h2>Cut otherwise when they stand alone</h2>" + (_entries_html(unused["unreachable"][:50]) or "<p>none</p>"),
        "<h2>Special and added tokens</h2>" + _special_html(found["special_tokens"]),
        "<h2>Chat template</h2>" + _chat_html(found["chat"]),
    ]
    return html_document(f"Tokenizer {found['name']}", "".join(parts))


def html_document(title: str, body: str) -> str:
    """A whole page around `body`, for large and small screens, light or dark."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table that scrolls sideways where it has to; the first row is the header."""
    head, *others = rows
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in others)
    return f"<div class=wide><table><tr>{header}</tr>{cells}</table></div>"


def _sample_html(sample: dict[str, Any]) -> str:
    spans = "".join(
        f'<span style="background:{COLOURS[i % len(COLOURS)]}" title="{" ".join(map(str, piece["ids"]))}">'
        f"{escape(piece['text'])}</span>"
        for i, piece in enumerate(sample["pieces"])
    )
    tokens = sum(len(piece["ids"]) for piece in sample["pieces"])
    return f"<h3>{escape(sample['name'])}, {tokens} tokens</h3><p class=cut dir=auto>{spans}</p>"


def _entries_html(entries: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"<code title={e['id']}>{escape(repr(e['text'])[1:-1])}</code>" for e in entries)


def _special_html(tokens: Sequence[dict[str, Any]]) -> str:
    return html_table([["token", "id", "role"], *([t["token"], str(t["id"]), t["role"] or ""] for t in tokens)])


def _chat_html(chat: dict[str, Any] | None) -> str:
    if chat is None:
        return "<p>none</p>"
    if "refused" in chat:
        return f"<p>It refuses a system, a user and an assistant turn: {escape(chat['refused'])}</p>"
    pieces = [{"text": t, "ids": [i]} for t, i in zip(chat["tokens"], chat["ids"], strict=True)]
    return _sample_html({"name": "A conversation", "pieces": pieces})


def present(
    found: dict[str, Any], words: Namespace, html: Callable[[dict[str, Any]], str], text: Callable[..., str]
) -> None:
    """Shows what was found as `ingot inspect` was asked to: `--html` writes a page, `--json` prints JSON alone.

    Raises: InputError when the page cannot be written.
    """
    if words.html is not None:
        try:
            write_text(words.html, html(found))
        except OSError as error:
            raise InputError(f"--html: {words.html}: cannot be written: {error.strerror}") from None
    if words.json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    print(text(found, colour=sys.stdout.isatty()))
    if words.html is not None:
        print(f"\npage: {words.html}")
