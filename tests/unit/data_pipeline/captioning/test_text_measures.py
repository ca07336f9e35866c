"""Captions' texts, whose words, repetitions and scripts are known."""

import pytest

from magicdistill.data_pipeline.captioning.text_measures import measure, words_of

ENGLISH = "A woman with short hair speaks to the camera. She turns her head, and smiles."
CHINESE = "一位短发女子对着镜头说话。"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("-- ... !", []),
        ("A man's  hat, (red)", ["a", "man's", "hat", "red"]),
        ("短发 woman", ["短", "发", "woman"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("24 fps", ["24", "fps"]),
    ],
)
def test_words_are_counted_in_scripts_with_and_without_blanks(text: str, words: list[str]):
    assert words_of(text) == words
    assert measure(text)["words"] == len(words)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (ENGLISH, 0.0),
        ("a man", 0.0),
        ("the man walks the man walks the man walks", 4 / 7),
        ("very very very very very", 2 / 3),
        (f"{ENGLISH} {ENGLISH}", 13 / 28),
        (CHINESE, 0.0),
        (CHINESE * 4, 1 - 12 / 46),
    ],
)
def test_the_share_of_repeated_runs_of_three_words_is_exact(text: str, share: float):
    assert measure(text)["repetition"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        (ENGLISH, {"latin": 1.0}),
        ("Une élève à l'école", {"latin": 1.0}),
        (CHINESE, {"cjk": 1.0}),
        ("カメラを見る한국어", {"cjk": 1.0}),
        ("женщина", {"cyrillic": 1.0}),
        ("امرأة", {"arabic": 1.0}),
        ("ab 短发", {"latin": 0.5, "cjk": 0.5}),
        ("γυναίκα", {}),
    ],
)
def test_each_letter_counts_for_its_script(text: str, shares: dict[str, float]):
    scripts = ("latin", "cyrillic", "arabic", "devanagari", "cjk")
    assert {name: measure(text)[name] for name in scripts} == dict.fromkeys(scripts, 0.0) | shares


def test_a_text_without_letters_has_no_script():
    assert measure("12 + 3 = 15")["latin"] is None
