"""What is shown of a finding, and what becomes of a check that breaks."""

from collections.abc import Iterator

from ingot.doctor.findings import Finding, as_tree, examined, fail, fails, gigabytes, ok, shown, warn


def test_a_check_that_breaks_is_a_finding_and_keeps_what_it_found_before() -> None:
    def check() -> Iterator[Finding]:
        yield ok("memory", "much")
        raise OSError("no such device")

    found = list(examined("machine", check))
    assert [f.status for f in found] == ["ok", "fail"] and "OSError: no such device" in found[1].text


def test_long_texts_are_cut_at_words_and_the_way_out_stands_below() -> None:
    page = shown(fail("disk", "word " * 60, "free some space"), 10).split("\n")
    assert page[0].startswith("fail  disk        word") and page[-1] == " " * 18 + "-> free some space"
    assert max(map(len, page)) <= 119 and len(page) == 4


def test_only_a_fail_fails() -> None:
    assert not fails([ok("a", "b"), warn("a", "b", "c")]) and fails([ok("a", "b"), fail("a", "b", "c")])
    assert as_tree([ok("a", "b")]) == [{"status": "ok", "what": "a", "text": "b", "way": ""}]


def test_sizes() -> None:
    assert [gigabytes(n) for n in (2.5e12, 64e9, 1e6, 999)] == ["2.5 TB", "64.0 GB", "1.0 MB", "1.0 kB"]
