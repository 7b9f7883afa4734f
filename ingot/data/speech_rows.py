"""Instructions and preference pairs made from the built-in speeches: every answer is a speech's own text.

The table of speeches says who spoke when, so an instruction can ask for an opening, a closing, what comes next, a word
on a topic or the century of a passage. In a pair the rejected answer is text of the same kind from another century.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from ingot.data.speeches import read_speeches

LONGEST_ANSWER = 520  # characters; with its prompt that stays within 256 tokens of a vocabulary of 4,096
SHORTEST_ANSWER = 100
LONGEST_QUOTE = 200
FAR = 90  # years between the two answers of a pair

STAGE_DIRECTION = re.compile(r"\s*\[[^\]]*\]")
SPEAKER = re.compile(r"^(The|Vice) President\. ")
SENTENCE_END = re.compile(r"[.!?][\"”’]?\s+(?=[\"“]?[A-Z])")
ABBREVIATION = re.compile(r"(\b(Mr|Mrs|Ms|Dr|St|No|Gen|Hon|[A-Z])\.)$")  # a full stop that ends no sentence
SIGNATURE = re.compile(r"^(The White House|[A-Z][a-z]+ \d+, \d{4})")

TOPICS = {
    "the navy": r"\bnavy|\bnaval\b|\bships of war\b", "the army": r"\barmy\b|\bsoldiers\b|\bmilitia\b",
    "the Treasury": r"\bTreasury\b", "the public debt": r"\bpublic debt\b|\bnational debt\b|\bdeficit",
    "taxes": r"\btaxes\b|\btaxation\b|\btax\b", "trade": r"\bcommerce\b|\btrade\b|\bexports\b|\btariff",
    "education": r"\beducation\b|\bschools?\b|\bstudents\b|\bteachers\b", "farming": r"\bagricultur|\bfarmers?\b",
    "railroads": r"\brailroads?\b|\brailways?\b", "Indian tribes": r"\bIndians?\b|\btribes\b",
    "Mexico": r"\bMexic(o|an)", "Great Britain": r"\bGreat Britain\b|\bBritish\b", "Spain": r"\bSpain\b|\bSpanish\b",
    "France": r"\bFrance\b|\bFrench\b", "Russia": r"\bRussia|\bSoviet", "China": r"\bChin(a|ese)\b",
    "peace": r"\bpeace\b", "war": r"\bwars?\b", "the Constitution": r"\bConstitution\b", "work": r"\bjobs\b|\blabor\b",
    "energy": r"\boil\b|\bgasoline\b|\benergy (crisis|policy|program|supply)", "health": r"\bhealth\b",
    "money": r"\bgold\b|\bsilver\b|\bcurrency\b|\binflation\b",
    "public lands": r"\bpublic lands?\b", "the mails": r"\bPost-?Office\b|\bpostal\b|\bmails?\b",
    "terrorism": r"\bterroris", "freedom": r"\bfreedom\b|\bliberty\b", "the courts": r"\bSupreme Court\b|\bjudges?\b",
}  # fmt: skip
CENTURIES = {17: "eighteenth", 18: "nineteenth", 19: "twentieth", 20: "twenty-first"}


@dataclass(frozen=True)
class Speech:
    """A speech as sentences; `paragraphs[i]` is the number of the paragraph that sentence i stands in."""

    identity: str
    president: str
    year: int
    party: str
    sentences: tuple[str, ...]
    paragraphs: tuple[int, ...]


@dataclass(frozen=True)
class Exchange:
    """An instruction with a speech's own text as the answer."""

    kind: str
    prompt: str
    answer: str


def speech_rows(seed: int) -> Iterator[dict[str, Any]]:
    """Instruction rows: prompt, response, document, kind, president, year, party."""
    for speech in load_speeches():
        for exchange in exchanges(speech, seed):
            yield {"prompt": exchange.prompt, "response": exchange.answer, **_about(speech, exchange)}


def speech_pairs(seed: int, held_out: set[str]) -> Iterator[dict[str, Any]]:
    """Preference rows: prompt, chosen, rejected, document, ...; held-out speeches are paired among themselves."""
    made = [(speech, exchanges(speech, seed)) for speech in load_speeches()]
    answers: dict[tuple[bool, str], list[tuple[int, str]]] = {}  # (held out?, kind) -> (year, answer)
    for speech, own in made:
        for exchange in own:
            answers.setdefault((speech.identity in held_out, exchange.kind), []).append((speech.year, exchange.answer))
    for speech, own in made:
        generator = random.Random(f"{seed}:{speech.identity}:pairs")
        for exchange in (e for e in own if e.kind != "century"):
            others = answers[speech.identity in held_out, exchange.kind]
            rejected = _rejected(speech.year, others, generator)
            if rejected is not None:
                both = {"chosen": exchange.answer, "rejected": rejected}
                yield {"prompt": exchange.prompt, **both, **_about(speech, exchange)}


def _about(speech: Speech, exchange: Exchange) -> dict[str, Any]:
    about = {"document": speech.identity, "kind": exchange.kind, "president": speech.president}
    return {**about, "year": speech.year, "party": speech.party}


def _rejected(year: int, answers: list[tuple[int, str]], generator: random.Random) -> str | None:
    """An answer from another time: at least FAR years away, or as far as there is; None when all are of one year."""
    farthest = max(abs(other - year) for other, _ in answers)
    if farthest == 0:
        return None
    return generator.choice([answer for other, answer in answers if abs(other - year) >= min(FAR, farthest)])


@cache
def load_speeches() -> list[Speech]:
    """The built-in speeches, cut into sentences, without stage directions."""
    speeches = []
    for _, row in read_speeches():
        paragraphs = [p for p in row["text"].split("\n") if not p.isupper()]  # headings and signatures are upper case
        pairs = [(i, s) for i, paragraph in enumerate(paragraphs) for s in split_sentences(paragraph)]
        numbers, sentences = zip(*pairs, strict=True)
        who = (row["president"], row["year"], row["party"])
        speeches.append(Speech(row["id"], *who, sentences, numbers))
    return speeches


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; a closing quotation mark stays with its sentence."""
    text = SPEAKER.sub("", STAGE_DIRECTION.sub("", " ".join(paragraph.split()))).strip()
    sentences, begin = [], 0
    for match in SENTENCE_END.finditer(text):
        sentence = text[begin : match.end()].rstrip()
        if not ABBREVIATION.search(sentence):
            sentences.append(sentence)
            begin = match.end()
    return [s for s in [*sentences, text[begin:]] if s]


def exchanges(speech: Speech, seed: int) -> list[Exchange]:
    """Up to seven instructions for one speech; the same for the same seed."""
    generator = random.Random(f"{seed}:{speech.identity}")
    makers: list[Callable[[Speech, random.Random], Iterator[Exchange]]] = [
        _opening, _closing, _continuations, _on_topics, _century,
    ]  # fmt: skip
    made = (exchange for make in makers for exchange in make(speech, generator))
    return [exchange for exchange in made if not _is_table(exchange.answer)]


def passage(speech: Speech, begin: int, longest: int = LONGEST_ANSWER) -> str:
    """As many whole sentences from `begin` on as fit; empty when even the first does not."""
    text = ""
    for i in range(begin, len(speech.sentences)):
        between = "" if i == begin else " " if speech.paragraphs[i] == speech.paragraphs[i - 1] else "\n\n"
        if len(text) + len(between) + len(speech.sentences[i]) > longest:
            break
        text += between + speech.sentences[i]
    return text


def _is_table(text: str) -> bool:
    """Whether a passage is mostly a list of sums, which says little and takes many tokens."""
    return sum(map(str.isdigit, text)) > len(text) / 25


def _opening(speech: Speech, generator: random.Random) -> Iterator[Exchange]:
    prompt = generator.choice((
        "Open a State of the Union address as {president} would in {year}.",
        "How would {president} begin the annual message of {year}?",
        "Write the first lines of the address that {president} gave in {year}.",
    ))  # fmt: skip
    answer = passage(speech, 0)
    if len(answer) >= SHORTEST_ANSWER:
        yield Exchange("opening", _filled(prompt, speech), answer)


def _closing(speech: Speech, generator: random.Random) -> Iterator[Exchange]:
    """The last sentences, without a signature and date below them."""
    prompt = generator.choice((
        "Close a State of the Union address as {president} would in {year}.",
        "How would {president} end the annual message of {year}?",
        "Write the last lines of the address that {president} gave in {year}.",
    ))  # fmt: skip
    end = len(speech.sentences)
    while end > 1 and SIGNATURE.match(speech.sentences[end - 1]):
        end -= 1
    body = Speech(speech.identity, speech.president, speech.year, "", speech.sentences[:end], speech.paragraphs[:end])
    starts = [i for i in range(max(0, end - 12), end) if len(passage(body, i, 10**6)) <= LONGEST_ANSWER]
    if starts and len(answer := passage(body, starts[0])) >= SHORTEST_ANSWER:
        yield Exchange("closing", _filled(prompt, speech), answer)


def _continuations(speech: Speech, generator: random.Random) -> Iterator[Exchange]:
    """Two passages, each to be continued from its first words."""
    starts = [
        i
        for i in range(1, len(speech.sentences) - 1)
        if SHORTEST_ANSWER <= len(speech.sentences[i]) <= LONGEST_QUOTE
        and speech.paragraphs[i] == speech.paragraphs[i + 1]
        and len(passage(speech, i + 1)) >= SHORTEST_ANSWER
    ]
    for i in generator.sample(starts, min(2, len(starts))):
        prompt = generator.choice((
            "Go on as {president} did in {year}: ", "Continue this passage from the address of {year}: ",
        ))  # fmt: skip
        yield Exchange("continuation", _filled(prompt, speech) + speech.sentences[i], passage(speech, i + 1))


def _on_topics(speech: Speech, generator: random.Random) -> Iterator[Exchange]:
    """Two passages, each on a topic that it names in its first sentence."""
    topics = generator.sample(list(TOPICS), len(TOPICS))
    found = ((topic, starts) for topic in topics if (starts := _sentences_on(speech, TOPICS[topic])))
    for topic, starts in islice(found, 2):
        prompt = generator.choice((
            "What did {president} say about {topic} in {year}?",
            "Say something about {topic} as a president of the {decade}s would.",
            "Write about {topic} in the manner of {president}.",
        ))  # fmt: skip
        yield Exchange("topic", _filled(prompt, speech, topic), passage(speech, generator.choice(starts)))


def _sentences_on(speech: Speech, pattern: str) -> list[int]:
    """Sentences that name a topic and begin a passage of a good length."""
    found = (i for i, sentence in enumerate(speech.sentences) if re.search(pattern, sentence))
    return [i for i in found if len(passage(speech, i)) >= SHORTEST_ANSWER]


def _century(speech: Speech, generator: random.Random) -> Iterator[Exchange]:
    starts = [i for i, s in enumerate(speech.sentences) if SHORTEST_ANSWER <= len(s) <= LONGEST_QUOTE]
    if starts:
        quote = speech.sentences[generator.choice(starts)]
        answer = f"In the {CENTURIES[speech.year // 100]} century. These are words of {speech.president}."
        yield Exchange("century", f"In which century was this said? {quote}", answer)


def _filled(prompt: str, speech: Speech, topic: str = "") -> str:
    decade = speech.year // 10 * 10
    return prompt.format(president=speech.president, year=speech.year, decade=decade, topic=topic)
