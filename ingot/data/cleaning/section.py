"""The keys of a recipe that say how documents are cleaned; thresholds have datatrove's names and defaults."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ingot.sections import Section

Choice = Literal["mask", "keep"]
Share = Annotated[float, Field(ge=0, le=1)]


def _switch(value: Any) -> Any:
    """`true` means every default, `false` and `off` mean None."""
    if value is True:
        return {}
    if value is False or value == "off":
        return None
    if value is None or isinstance(value, dict | Section):
        return value
    raise ValueError(f"expected true, false or a mapping of its keys, got {value!r}")


Switch = BeforeValidator(_switch)


class GopherQuality(Section):
    """Quality rules of the Gopher paper (Rae et al. 2021, table A1); null switches a rule off."""

    min_doc_words: int | None = Field(default=50, ge=0, description="fewest words, symbols not counted")
    max_doc_words: int | None = Field(default=100000, gt=0, description="most words, symbols not counted")
    min_avg_word_length: float | None = Field(default=3, ge=0, description="smallest mean length of a word")
    max_avg_word_length: float | None = Field(default=10, gt=0, description="largest mean length of a word")
    max_symbol_word_ratio: float | None = Field(
        default=0.1, ge=0, description="most hash signs, or ellipses, for each word"
    )
    max_bullet_lines_ratio: Share | None = Field(default=0.9, description="largest share of lines with a bullet")
    max_ellipsis_lines_ratio: Share | None = Field(
        default=0.3, description="largest share of lines that end with an ellipsis"
    )
    max_non_alpha_words_ratio: Share | None = Field(
        default=0.8, description="least share of words with a letter (datatrove's name says otherwise)"
    )
    min_stop_words: int | None = Field(default=2, ge=0, description="fewest different stop words")
    stop_words: list[str] | None = Field(default=None, description="stop words; unset: eight English ones")


class GopherRepetition(Section):
    """Repetition rules of the Gopher paper (table A1); null, or an empty list, switches a rule off."""

    dup_line_frac: Share | None = Field(default=0.3, description="largest share of lines that repeat others")
    dup_para_frac: Share | None = Field(default=0.3, description="largest share of paragraphs that repeat others")
    dup_line_char_frac: Share | None = Field(default=0.2, description="largest share of characters in such lines")
    dup_para_char_frac: Share | None = Field(default=0.2, description="largest share of characters in such paragraphs")
    top_n_grams: list[list[int | float]] = Field(
        default=[[2, 0.2], [3, 0.18], [4, 0.16]],
        description="pairs of n and the largest share of characters in the most frequent n words",
    )
    dup_n_grams: list[list[int | float]] = Field(
        default=[[5, 0.15], [6, 0.14], [7, 0.13], [8, 0.12], [9, 0.11], [10, 0.1]],
        description="pairs of n and the largest share of characters in repeated n words",
    )

    def problems(self, key: str) -> Iterator[str]:
        """Pairs that are none; `key` is this section's place in the recipe."""
        for name in ("top_n_grams", "dup_n_grams"):
            for i, pair in enumerate(getattr(self, name)):
                if len(pair) != 2 or not isinstance(pair[0], int) or pair[0] < 1 or not 0 <= pair[1] <= 1:
                    yield f"{key}.{name}.{i}: expected a pair such as [5, 0.15], got {pair}"


class C4(Section):
    """Rules of the C4 corpus (Raffel et al. 2020); they remove lines, and documents of which too little is left."""

    split_paragraph: bool = Field(default=True, description="judge lines; false: sentences")
    remove_citations: bool = Field(default=True, description="remove [1], [edit] and [citation needed]")
    filter_no_terminal_punct: bool = Field(default=True, description="remove lines that do not end a sentence")
    min_num_sentences: int = Field(default=5, ge=-1, description="fewest sentences that are left; -1: any number")
    min_words_per_line: int = Field(default=3, ge=-1, description="remove lines with fewer words; -1: none")
    max_word_length: int = Field(default=1000, ge=-1, description="remove lines with a longer word; -1: none")
    filter_lorem_ipsum: bool = Field(default=True, description="drop documents with lorem ipsum")
    filter_javascript: bool = Field(default=True, description="remove lines that name javascript")
    filter_curly_bracket: bool = Field(default=True, description="drop documents with {; keep them for code")
    filter_policy: bool = Field(default=True, description="remove lines on cookies, terms of use and privacy")


class FineWeb(Section):
    """Rules of the FineWeb corpus (Penedo et al. 2024)."""

    line_punct_thr: Share = Field(default=0.12, description="least share of lines that end a sentence")
    line_punct_exclude_zero: bool = Field(default=False, description="keep documents where no line ends a sentence")
    stop_chars: list[str] | None = Field(
        default=None, description="characters that end a sentence; unset: those of all scripts"
    )
    short_line_thr: Share = Field(default=0.67, description="largest share of short lines")
    short_line_length: int = Field(default=30, ge=0, description="characters of a short line")
    char_duplicates_ratio: Share = Field(default=0.01, description="largest share of characters in repeated lines")
    new_line_ratio: float = Field(default=0.3, ge=0, description="most line ends for each word")


class Filters(Section):
    """Documents that are left out; every drop is counted by its reason."""

    min_characters: int = Field(default=1, ge=0, description="shortest document that is kept")
    max_characters: int | None = Field(default=None, gt=0, description="longest document that is kept")
    min_letter_share: float = Field(
        default=0.0, ge=0, le=1, description="least share of letters among the visible characters"
    )
    max_repeated_line_share: float = Field(
        default=1.0, ge=0, le=1, description="largest share of lines that repeat others"
    )
    languages: list[str] = Field(default=[], description="languages that are kept, such as [en, de]; empty: all")
    language_threshold: float = Field(
        default=0.65, ge=0, le=1, description="least certainty that a document is in one of the languages"
    )
    gopher_quality: Annotated[GopherQuality | None, Switch] = Field(
        default=None, description="Gopher's quality rules: true, false or thresholds"
    )
    gopher_repetition: Annotated[GopherRepetition | None, Switch] = Field(
        default=None, description="Gopher's repetition rules: true, false or thresholds"
    )
    c4: Annotated[C4 | None, Switch] = Field(default=None, description="C4's rules: true, false or thresholds")
    fineweb: Annotated[FineWeb | None, Switch] = Field(
        default=None, description="FineWeb's rules: true, false or thresholds"
    )
    words: str = Field(
        default="unicode",
        description="how these rules split words: `unicode`, or the code of a language that datatrove can split",
    )

    def problems(self, key: str) -> Iterator[str]:
        """What is contradictory; `key` is this section's place in the recipe."""
        from ingot.data.cleaning.language import unknown_languages

        if self.max_characters is not None and self.max_characters < self.min_characters:
            yield f"{key}.max_characters: {self.max_characters} is below min_characters {self.min_characters}"
        if self.gopher_repetition is not None:
            yield from self.gopher_repetition.problems(f"{key}.gopher_repetition")
        yield from (f"{key}.languages: {problem}" for problem in unknown_languages(self.languages))
        if self.words != "unicode":
            from ingot.data.cleaning.words import splitter_problem

            yield from (f"{key}.words: {problem}" for problem in splitter_problem(self.words))


class Minhash(Section):
    """Near-duplicates: documents that share most of their runs of `ngram` words (Broder 1997, with banding)."""

    ngram: int = Field(default=5, ge=1, le=64, description="words in a run")
    num_buckets: int = Field(default=14, ge=1, le=128, description="chances that a pair of documents has to be found")
    hashes_per_bucket: int = Field(default=8, ge=1, le=64, description="hashes that must agree in one chance")
    seed: int = Field(default=1, ge=0, description="seed of the hashes")

    def found(self, similarity: float) -> float:
        """The probability that a pair is found; `similarity` is the share of their runs that both documents have."""
        return float(1 - (1 - similarity**self.hashes_per_bucket) ** self.num_buckets)

    @property
    def threshold(self) -> float:
        """The similarity around which pairs begin to be found: (1 / buckets) ** (1 / hashes)."""
        return float((1 / self.num_buckets) ** (1 / self.hashes_per_bucket))

    def in_words(self) -> str:
        """What these numbers mean, for a report."""
        shares = ", ".join(f"{self.found(s):.0%} at {s}" for s in (0.5, 0.7, 0.8, 0.9))
        return f"near-duplicates from a similarity of about {self.threshold:.2f}; pairs found: {shares}"


class Benchmark(Section):
    """Questions that no training document may hold."""

    path: str = Field(description="file or glob (jsonl, csv, parquet, text; .gz, .zst), or an lm-eval task's .yaml")
    columns: list[str] = Field(default=[], description="columns to look at; empty: all that hold text")
    name: str | None = Field(default=None, min_length=1, description="name in reports; unset: the file's folder")


class Decontaminate(Section):
    """Documents that share a run of words with a benchmark."""

    benchmarks: list[Benchmark] = Field(min_length=1, description="files with the benchmarks")
    ngram: int = Field(default=13, ge=5, le=64, description="words in a run")
    min_words: int | None = Field(
        default=None,
        ge=5,
        description="shorter texts with so many words are looked for as a whole; unset: they are not looked for",
    )
    action: Literal["document", "span"] = Field(
        default="document", description="drop the document, or cut the run out of it"
    )
    span_margin: int = Field(default=0, ge=0, description="characters that are cut out on both sides of a run")

    @property
    def lengths(self) -> range:
        """Numbers of words that are looked for."""
        return range(min(self.min_words or self.ngram, self.ngram), self.ngram + 1)


class Pii(Section):
    """Personal data that is masked."""

    email: Choice = Field(default="mask", description="e-mail addresses")
    email_replacement: list[str] = Field(
        default=["email@example.com", "firstname.lastname@example.org"],
        min_length=1,
        description="what takes the place of the first, second, ... address of a document, over and over",
    )
    ip: Choice = Field(default="mask", description="public IPv4 addresses")
    ip_replacement: list[str] = Field(
        default=["192.0.2.1", "198.51.100.1", "203.0.113.1"],
        min_length=1,
        description="the same for IP addresses; unset: addresses reserved for documentation",
    )
    phone: Choice = Field(default="keep", description="telephone numbers: +49 30 1234567, (212) 555-0123, ...")
    phone_replacement: list[str] = Field(
        default=["555-0100"], min_length=1, description="the same for telephone numbers"
    )
    url_credentials: Choice = Field(default="mask", description="user:password@ in a URL, which is removed")


class KeepDropped(Section):
    """Dropped documents that are written beside the shards, with the reason."""

    per_reason: int | None = Field(default=None, gt=0, description="most documents of a reason and task; unset: all")


class Cleaning(Section):
    """What is done to documents before they are split and tokenised."""

    filters: Filters = Field(default_factory=Filters, description="documents that are left out")
    dedup: Literal["exact", "off"] = Field(
        default="exact", description="drop documents whose normalised text came before"
    )
    minhash: Annotated[Minhash | None, Switch] = Field(
        default=None, description="drop documents that are nearly the same as one before: true, off or numbers"
    )
    decontaminate: Annotated[Decontaminate | None, Switch] = Field(
        default=None, description="drop documents that hold questions of benchmarks"
    )
    pii: Annotated[Pii | None, Switch] = Field(default=None, description="mask personal data: true, false or what")
    keep_dropped: Annotated[KeepDropped | None, Switch] = Field(
        default=None, description="write dropped documents and the reason: true, false or how many"
    )

    def cleaning_problems(self, key: str) -> Iterator[str]:
        """What is contradictory; `key` is this section's place in the recipe."""
        yield from self.filters.problems(f"{key}.filters")
