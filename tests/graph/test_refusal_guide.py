"""Every refusal code has its meaning and its remedy, in the order and words of the page that shows them."""

from __future__ import annotations

from layerprune.graph import REFUSAL_GUIDE, RefusalCode


def test_each_code_has_its_guidance_once_in_the_order_of_the_codes() -> None:
    assert [code for codes in REFUSAL_GUIDE.values() for code in codes] == list(RefusalCode)


def test_meanings_and_remedies_are_sentences() -> None:
    for codes in REFUSAL_GUIDE.values():
        for code, guidance in codes.items():
            for text in (guidance.meaning, guidance.remedy):
                assert text.lstrip("`")[0].isupper() or text[0] == "`", code
                assert text.rstrip("`").endswith("."), code
