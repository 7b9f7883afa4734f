"""Personal data is masked, nothing else is, and a long line takes no long time."""

import pytest

from ingot.data.cleaning.pii import NEAR, Masker
from ingot.data.cleaning.section import Pii

ALL = Pii(phone="mask")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ann.b+c@mail.co.uk.", "Write to email@example.com."),
        ("a@b.com, c@d.org; e@f.net", "email@example.com, firstname.lastname@example.org; email@example.com"),
        ("ping 8.8.8.8", "ping 192.0.2.1"),
        ("https://bob:secret@host.com/x", "https://host.com/x"),
        ("call +49 30 1234567 now", "call 555-0100 now"),
        ("(212) 555-0123 or 212-555-0199", "555-0100 or 555-0100"),
    ],
)
def test_masked(text: str, masked: str) -> None:
    assert Masker(ALL).mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "a meeting @ noon, @home, user@localhost",
        "10.0.0.1 and 192.168.1.1 are not public, 999.1.2.3 and 1.2.3.4.5 are none",
        "1999-2000, 2024-01-15, 3.14159265, ISBN 978-3-16-148410-0, 12345678901",
        "https://host.com/a@b and http://host:80/",
    ],
)
def test_kept(text: str) -> None:
    assert Masker(ALL).mask(text) == (text, {})


def test_counts_and_what_stays_by_choice() -> None:
    text = "a@b.com c@d.com 8.8.8.8 ftp://u:p@h.org +1 212 555 0123"
    assert Masker(ALL).mask(text)[1] == {"pii: email": 2, "pii: ip": 1, "pii: url credentials": 1, "pii: phone": 1}
    assert Masker(Pii(email="keep", ip="keep", url_credentials="keep")).mask(text) == (text, {})
    section = Pii(email_replacement=["<email>"], ip_replacement=["<ip>"], url_credentials="keep")
    assert Masker(section).mask("a@b.com c@d.com 8.8.8.8")[0] == "<email> <email> <ip>"


def test_the_same_text_gives_the_same_result_whatever_came_before() -> None:
    masker = Masker(ALL)
    first = masker.mask("a@b.com and 8.8.8.8")
    masker.mask("c@d.com")
    assert masker.mask("a@b.com and 8.8.8.8") == first


def test_addresses_far_apart_and_beside_each_other() -> None:
    gap = " x" * NEAR + " "
    assert Masker(ALL).mask(f"{gap}a@b.com{gap}c@d.com,e@f.com{gap}") == (
        f"{gap}email@example.com{gap}firstname.lastname@example.org,email@example.com{gap}",
        {"pii: email": 3},
    )


def test_a_long_line_without_spaces() -> None:
    """The pattern on the whole line would take hours."""
    line = "a/" * 300_000
    assert Masker(ALL).mask(line + "@")[0] == line + "@"
