"""The configured steps of cleaning, on texts that show what each takes away and what it leaves."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.config.cleaning import MaskPii
from kdscale.config.data import DataConfig
from kdscale.data.cleaning.cleaner import FIRST_STEP, Cleaned, Cleaner, Status
from kdscale.data.cleaning.pii import mask_pii
from kdscale.data.cleaning.steps import normalise, strip_markup
from kdscale.errors import KdscaleError


def cleaned(raw: bytes | str | None, *steps: dict[str, Any], **fields: Any) -> Cleaned:
    config = DataConfig.model_validate({"cleaning": steps, "min_characters": 1, **fields})
    return Cleaner(config)(raw)


def test_look_alikes_become_the_same() -> None:
    text = "\u201cﬁne\u201d  \u2014\u00a0it\u2019s\t①\n\n\n\nend "
    assert normalise(text) == '"fine" - it\'s 1\n\nend'


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_markup_goes_and_what_only_looks_like_it_stays() -> None:
    page = (
        "<html><head><title>t</title><style>p {}</style></head><body><p>A &amp; <b>B</b></p>"
        "<script>alert(1)</script><p>C</p></body></html>"
    )
    assert strip_markup(page).split() == ["A", "&", "B", "C"]
    code = "if a < b and c > d: x = [y for y in z if y <3]"
    assert strip_markup(code) == code
    refused = "<p>which Python's parser refuses: <![', x"
    assert strip_markup(refused) == refused


PII = {
    "write to jane.doe+x@mail.example.co.uk now": "write to <EMAIL> now",
    "https://bob:s3cret@host/path": "https://<CREDENTIALS>@host/path",
    "from 192.168.10.254, version 1.2.3.400": "from <IP_ADDRESS>, version 1.2.3.400",
    "at fe80::1ff:fe23:4567:890a or 12:30": "at <IP_ADDRESS> or 12:30",
    "call (650) 253-0000 or +44 20 7946 0958": "call <PHONE> or <PHONE>",
    "card 4539 1488 0343 6467, not 4539 1488 0343 6468": (
        "card <CREDIT_CARD>, not 4539 1488 0343 6468"
    ),
    "to DE89 3704 0044 0532 0130 00 please": "to <IBAN> please",
    "not DE89 3704 0044 0532 0130 01": "not DE89 3704 0044 0532 0130 01",
    "in 2024 it grew by 1,250.75 to 3:45 on 10/11/2024": (
        "in 2024 it grew by 1,250.75 to 3:45 on 10/11/2024"
    ),
}


@pytest.mark.parametrize("text", PII)
def test_personal_data_is_masked_and_other_numbers_are_not(text: str) -> None:
    config = MaskPii(kind="mask_pii")
    assert mask_pii(text, config.of, config.region) == PII[text]


def test_only_the_kinds_asked_for_are_masked() -> None:
    text = "jane@example.org at 10.0.0.1"
    assert mask_pii(text, ["ip_address"], "US") == "jane@example.org at <IP_ADDRESS>"


ENGLISH = "The committee said on Tuesday that the new bridge would open before the summer."
GERMAN = "Der Ausschuss teilte am Dienstag mit, dass die neue Brücke vor dem Sommer öffnen werde."


def test_documents_in_other_languages_are_dropped() -> None:
    step = {"kind": "language", "keep": ["en"]}
    assert cleaned(ENGLISH, step).status == Status.KEPT
    assert cleaned(GERMAN, step) == Cleaned("", FIRST_STEP, 0, None)
    assert cleaned(GERMAN, {"kind": "language", "keep": ["de", "en"]}).text == GERMAN
    with pytest.raises(KdscaleError, match=r"languages \['xx'\] are not known"):
        cleaned("", {"kind": "language", "keep": ["en", "xx"]})


def test_steps_are_done_in_their_order_and_what_they_did_is_kept() -> None:
    markup, length = {"kind": "strip_markup"}, {"kind": "length", "min_words": 3, "max_words": 4}
    page = "<p>one two</p><script>three four five</script>"
    assert cleaned(page, markup, length) == Cleaned("", FIRST_STEP + 1, 0b01, None)
    assert cleaned(page, length, markup).text.split() == ["one", "two"]
    found = cleaned("a b c \u2014", {"kind": "normalise"}, markup, length)
    assert found == Cleaned("a b c -", Status.KEPT, 0b001, None)
    assert cleaned("a b c d e", length).status == FIRST_STEP


def test_what_is_short_after_the_steps_is_dropped() -> None:
    markup = {"kind": "strip_markup"}
    assert cleaned("<p>ab</p>", markup, min_characters=3).status == Status.SHORT
    assert cleaned(b"\xff\xfe", markup).status == Status.UNDECODABLE
    assert cleaned(None).status == Status.UNDECODABLE


def test_a_config_names_steps_once_where_they_mean_one_thing() -> None:
    near = {"kind": "near_duplicates"}
    with pytest.raises(ValueError, match="`near_duplicates` more than once"):
        DataConfig.model_validate({"cleaning": [near, near]})
    with pytest.raises(ValueError, match="max_words 2 is below min_words 3"):
        DataConfig.model_validate(
            {"cleaning": [{"kind": "length", "min_words": 3, "max_words": 2}]}
        )
