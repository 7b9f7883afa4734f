"""Near-duplicates: planted ones are found as the theory says, the same in any split into tasks, and restartable."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ingot.data.cleaning.minhash import SignatureWriter, Signer, files_of, near_duplicates
from ingot.data.cleaning.section import Minhash

from .planted import edited, invented, plant, similarity

SECTION = Minhash()


def write(folder: Path, tasks: list[list[str]], section: Minhash = SECTION) -> None:
    """Writes the keys of every task."""
    for rank, texts in enumerate(tasks):
        writer = SignatureWriter(folder, rank, section)
        for number, text in enumerate(texts):
            writer.add(number, text)
        writer.close()


def found(folder: Path, texts: list[str], num_tasks: int = 1, **options: int) -> list[list[int]]:
    """The near-duplicates of texts dealt out to tasks in order."""
    size = -(-len(texts) // num_tasks)
    write(folder, [texts[i * size : (i + 1) * size] for i in range(num_tasks)])
    return [numbers.tolist() for numbers in near_duplicates(folder, num_tasks, **options)]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return [document.text for document in plant([invented(i, 60 + i % 200) for i in range(160)])]


def test_planted_copies_are_found_and_nothing_else(tmp_path: Path, corpus: list[str]) -> None:
    documents = plant([invented(i, 60 + i % 200) for i in range(160)])
    dropped = set(found(tmp_path, corpus)[0])
    sure = {i for i, d in enumerate(documents) if d.kind in ("copy", "edit 1%")}
    planted = {i for i, d in enumerate(documents) if d.original is not None}
    assert len(sure) == 19 and sure <= dropped <= planted


def test_the_share_found_follows_the_similarity() -> None:
    """Over many pairs the number found is within four standard deviations of 1 - (1 - s^r)^b."""
    signer, hits, expected, variance = Signer(SECTION), 0, 0.0, 0.0
    source = random.Random(1)
    for i in range(150):
        text = invented(i, 120)
        near = edited(text, 0.05, source)
        first, second = signer.keys(text), signer.keys(near)
        assert first is not None and second is not None
        hits += bool((first == second).any())
        chance = SECTION.found(similarity(text, near))
        expected, variance = expected + chance, variance + chance * (1 - chance)
    assert 30 < expected < 120  # neither none nor all, or the test would say nothing
    assert abs(hits - expected) < 4 * variance**0.5


def test_the_signature_estimates_the_similarity() -> None:
    signer = Signer(Minhash(num_buckets=128, hashes_per_bucket=8))
    source = np.random.default_rng(3)
    for similar in (0.2, 0.5, 0.8):
        shared, rest = int(1000 * similar), int(1000 * (1 - similar)) // 2
        values: NDArray[np.uint64] = source.integers(0, 2**64, shared + 2 * rest, np.uint64)
        same = signer.signature(values[: shared + rest]) == signer.signature(values[rest:])
        assert same.mean() == pytest.approx(shared / len(values), abs=0.06)


def test_the_first_in_reading_order_stays(tmp_path: Path) -> None:
    text = invented(1)
    chain = [invented(2), text, edited(text, 0.01, random.Random(0)), text, invented(3), text]
    assert found(tmp_path, chain) == [[2, 3, 5]]


def test_tasks_and_ranges_do_not_change_the_answer(tmp_path: Path, corpus: list[str]) -> None:
    answers = []
    for num_tasks, at_once in itertools.product((1, 3), (1 << 22, 37)):
        folder = tmp_path / f"{num_tasks}-{at_once}"
        folder.mkdir()
        parts = found(folder, corpus, num_tasks, at_once=at_once)
        size = -(-len(corpus) // num_tasks)
        answers.append([rank * size + number for rank, numbers in enumerate(parts) for number in numbers])
    assert answers[0] and all(answer == answers[0] for answer in answers)


def test_numbers_of_documents_that_were_left_out_are_kept(tmp_path: Path) -> None:
    writer = SignatureWriter(tmp_path, 0, SECTION)
    for number in (3, 8, 21):
        writer.add(number, invented(5))
    writer.close()
    assert near_duplicates(tmp_path, 1)[0].tolist() == [8, 21]


def test_texts_shorter_than_a_run_and_empty_tasks(tmp_path: Path) -> None:
    write(tmp_path, [["one two three", "one two three", ""], []])
    assert [part.tolist() for part in near_duplicates(tmp_path, 2)] == [[], []]


def test_case_signs_accents_and_numbers_do_not_matter(tmp_path: Path) -> None:
    first = "Le café (ouvert depuis 1950) sert chaque jour 1,200 personnes du quartier et d'ailleurs."
    second = "le CAFE, ouvert depuis 1951, sert chaque jour 1,300 personnes du quartier... et d ailleurs"
    assert found(tmp_path, [first, second]) == [[1]]


def test_a_task_is_there_only_when_it_is_closed(tmp_path: Path) -> None:
    writer = SignatureWriter(tmp_path, 0, SECTION)
    writer.add(0, invented(1))
    assert not any(path.exists() for path in files_of(tmp_path, 0))
    write(tmp_path, [[invented(1), invented(1)]])  # the task begins again, as after a kill
    assert near_duplicates(tmp_path, 1)[0].tolist() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["near-00000-documents.npy", "near-00000-keys.npy"]


def test_another_seed_gives_other_keys_and_the_same_seed_the_same() -> None:
    text = invented(1)
    first, again, other = (Signer(Minhash(seed=seed)).keys(text) for seed in (1, 1, 2))
    assert first is not None and again is not None and other is not None
    assert (first == again).all() and not (first == other).any()


def test_the_same_clusters_as_datatrove(tmp_path: Path, corpus: list[str]) -> None:
    """Whatever is clearly a copy or clearly none; in between both methods draw lots of their own."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    from ingot.data.cleaning.words import UnicodeWords

    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    steps = [str(tmp_path / name) for name in ("signatures", "buckets", "clusters")]
    signatures = MinhashDedupSignature(steps[0], config, language=UnicodeWords("unicode"))
    signatures.run(iter([Document(text, str(i)) for i, text in enumerate(corpus)]))
    for rank in range(config.num_buckets):
        MinhashDedupBuckets(steps[0], steps[1], config=config).run(None, rank, config.num_buckets)
    MinhashDedupCluster(steps[1], steps[2], config).run(None, 0, 1)
    theirs = set(np.fromfile(Path(steps[2]) / "000000.remove", "<u4").tolist())
    ours = set(found(tmp_path, corpus)[0])
    originals = {i: d.original for i, d in enumerate(plant([invented(i, 60 + i % 200) for i in range(160)]))}
    theirs = {max(i, copy) for i in theirs for copy in _copies(originals, i)}  # theirs may keep the later one
    likely = {i for i, o in originals.items() if o is not None and similarity(corpus[i], corpus[o]) > 0.95}
    assert likely <= ours & theirs
    assert len(ours ^ theirs) <= 0.2 * len(ours | theirs)


def _copies(originals: dict[int, int | None], number: int) -> list[int]:
    return [copy for copy, original in originals.items() if number in (copy, original) and original is not None]
