"""What is counted of a caption's text: its words, how far it repeats itself, and its scripts."""

import re
import unicodedata
from collections import Counter
from functools import cache

from magicdistill.data_pipeline.scorers.base import Values

SCRIPTS = {
    "latin": ("LATIN",),
    "cyrillic": ("CYRILLIC",),
    "arabic": ("ARABIC",),
    "devanagari": ("DEVANAGARI",),
    "cjk": ("CJK", "HIRAGANA", "KATAKANA", "HANGUL"),
}
"""First words of the Unicode names of each script's letters. A script does not tell French from
English, but Chinese from both, which is what models of several languages fall into."""
MEASURES = ("words", "repetition", *SCRIPTS)
"""Names of what `measure` returns."""
RUN = 3
"""Words of a run that is looked for again."""
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Characters of Chinese and Japanese, which are written without blanks: each counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """Return a text's words in lower case, without the punctuation around them."""
    return [
        word
        for found in _WORD.findall(text.lower())
        if (word := re.sub(r"^[\W_]+|[\W_]+$", "", found) if found.isascii() else found)
        and any(map(str.isalnum, word))
    ]


def measure(text: str) -> Values:
    """Return the measures of a text, by name.

    `words` is their number. `repetition` is the share of its runs of three words that stand in it
    before. Of each script it is the share of the letters, null where there is no letter.
    """
    words = words_of(text)
    runs = [*zip(*(words[first:] for first in range(RUN)), strict=False)]
    shares = _shares_of_scripts(text)
    return {
        "words": float(len(words)),
        "repetition": 1 - len(set(runs)) / len(runs) if runs else 0.0,
        **{script: shares[script] if shares else None for script in SCRIPTS},
    }


def _shares_of_scripts(text: str) -> dict[str, float] | None:
    letters = {letter: count for letter, count in Counter(text).items() if letter.isalpha()}
    if not letters:
        return None
    found: Counter[str] = Counter()
    for letter, count in letters.items():
        found[_script_of(letter)] += count
    return {script: found[script] / sum(letters.values()) for script in SCRIPTS}


@cache
def _script_of(letter: str) -> str:
    first = unicodedata.name(letter, "").partition(" ")[0]
    return next((script for script, names in SCRIPTS.items() if first in names), "")
