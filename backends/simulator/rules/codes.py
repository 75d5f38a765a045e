"""Codes for diagnoses, from a list of words.

Pure.
"""

from typing import Final

_CODES: Final = (
    # The level that knows it, the words, the code.
    (1, "hypertension", "I10"),
    (1, "asthma", "J45.909"),
    (1, "type 2 diabetes", "E11.9"),
    (1, "pneumonia", "J18.9"),
    (1, "migraine", "G43.909"),
    (2, "hypothyroid", "E03.9"),
    (2, "atrial fibrillation", "I48.91"),
    (2, "urinary tract infection", "N39.0"),
    (2, "low back pain", "M54.50"),
    (2, "depress", "F32.A"),
    (2, "gastro-oesophageal reflux", "K21.9"),
    (3, "iron deficiency anaemia", "D50.9"),
    (3, "copd", "J44.9"),
    (3, "appendicitis", "K35.80"),
    (3, "high blood pressure", "I10"),
    (3, "heart failure", "I50.9"),
    (3, "gout", "M10.9"),
    (4, "chronic obstructive", "J44.9"),
    (4, "underactive thyroid", "E03.9"),
    (4, "reflux", "K21.9"),
    (4, "sugar disease", "E11.9"),
)


def icd_code(text: str, level: int) -> str:
    """The code of the first diagnosis that is known; of those denied or only suspected, larger programs take none."""
    body = text.lower()
    found = [(body.find(words), code) for known, words, code in _CODES if known <= level and words in body]
    if level >= 3:
        found = [one for one in found if not body[max(0, one[0] - 16) : one[0]].rstrip().endswith(("no", "without"))]
    return min(found)[1] if found else "R69"
