"""A summary by taking sentences.

Pure.
"""

import re
from collections import Counter
from typing import Final

_SENTENCE: Final = re.compile(r"[^.!?]+[.!?]")
_WORD: Final = re.compile(r"[A-Za-z]{4,}")


def summary(text: str, level: int) -> str:
    """Small: the last sentence. Medium: the first. Larger: those whose words come up most, in their order."""
    sentences: list[str] = [found.strip() for found in _SENTENCE.findall(text)] or [text.strip()]
    if level == 1:
        return sentences[-1]
    if level == 2 or len(sentences) < 3:
        return sentences[0]
    counts = Counter(word.lower() for word in _WORD.findall(text))
    worth = [
        sum(counts[word.lower()] for word in _WORD.findall(sentence)) / (6 + len(sentence.split()))
        + (0.6 if place == 0 else 0)
        for place, sentence in enumerate(sentences)
    ]
    best = sorted(range(len(sentences)), key=lambda place: -worth[place])[: 1 if level == 3 else 2]
    return " ".join(sentences[place] for place in sorted(best))
