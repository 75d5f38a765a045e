"""Extraction by patterns: contracts, invoices, products, personal data.

Pure.
"""

import json
import re
from typing import Final

_MONTHS: Final = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
                  "november", "december")  # fmt: skip
_NUMBERS: Final = {"one": 1, "two": 2, "three": 3, "six": 6, "twelve": 12, "eighteen": 18, "twenty-four": 24,
                   "thirty": 30, "thirty-six": 36, "sixty": 60, "ninety": 90}  # fmt: skip
_COMPANY: Final = r"[A-Z][\w&.'-]*(?: [A-Z][\w&.'-]*)* (?:Ltd|GmbH|Inc|LLP|LLC|BV|SA|Co|AG|Oy)\b"
_NATIONS: Final = {"dutch": "Netherlands", "english": "England", "german": "Germany", "french": "France",
                   "irish": "Ireland", "swiss": "Switzerland"}  # fmt: skip
_COLOURS: Final = ("red", "blue", "green", "black", "white", "grey", "yellow", "brown", "navy", "beige", "orange")
_MATERIALS: Final = ("cotton", "wool", "leather", "steel", "stoneware", "nylon", "oak", "glass", "linen", "polyester",
                     "bamboo", "canvas", "porcelain", "merino")  # fmt: skip
_CURRENCIES: Final = {"€": "EUR", "£": "GBP", "$": "USD", "eur": "EUR", "gbp": "GBP", "usd": "USD", "chf": "CHF"}


def contract_fields(text: str, level: int) -> str:
    """Parties, dates, term, law and notice."""
    found: dict[str, str | None] = dict.fromkeys(
        ("party_a", "party_b", "effective_date", "term_months", "governing_law", "notice_days")
    )
    companies = list(dict.fromkeys(re.findall(_COMPANY, text)))
    found["party_a"], found["party_b"] = (*companies, None, None)[:2]
    found["effective_date"] = date_in(text, level)
    if term := re.search(r"(\d+)\)? (month|year)s?\b", text):
        found["term_months"] = str(int(term.group(1)) * (12 if term.group(2) == "year" and level >= 2 else 1))
    elif level >= 3 and (term := re.search(r"\b([a-z-]+) (month|year)s?\b", text)) and term.group(1) in _NUMBERS:
        found["term_months"] = str(_NUMBERS[term.group(1)] * (12 if term.group(2) == "year" else 1))
    if (law := re.search(r"laws? of (?:the )?([A-Z]\w+(?: [A-Z]\w+)*)", text)) or (
        level >= 2 and (law := re.search(r"[Gg]overning law: ([A-Z]\w+(?: [A-Z]\w+)*)", text))
    ):
        found["governing_law"] = law.group(1)
    elif level >= 3 and (law := re.search(r"\b(\w+) law applies", text)):
        found["governing_law"] = _NATIONS.get(law.group(1).lower(), law.group(1) if level < 4 else None)
    if notice := re.search(r"(\d+)\)? days", text):
        found["notice_days"] = notice.group(1)
    elif level >= 4 and (notice := re.search(r"\b([a-z-]+) days", text)) and notice.group(1) in _NUMBERS:
        found["notice_days"] = str(_NUMBERS[notice.group(1)])
    return json.dumps(found)


def invoice_fields(text: str, level: int) -> str:
    """Supplier, number, date, currency and total."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    number = re.search(r"(?:[Ii]nvoice|[Nn]o\.?|#)\s*(?:no\.?|number)?:?\s*([A-Z]{0,4}-?\d[\w/-]*)", text)
    amounts = re.findall(r"(?<![\d.])\d{1,6}\.\d{2}(?!\d)", text)
    total = re.search(r"[Tt]otal(?: due)?:?\s*\D{0,5}(\d{1,6}\.\d{2})", text) if level >= 2 else None
    currency = next((code for sign, code in _CURRENCIES.items() if sign in text.lower()), None)
    found = {
        "supplier": lines[0] if lines else None,
        "invoice_number": number.group(1) if number else None,
        "date": date_in(text, level),
        "currency": currency if level >= 2 or currency == "EUR" else None,
        "total": total.group(1) if total else (amounts[-1 if level < 3 else 0] if amounts else None),
    }
    return json.dumps(found)


def product_fields(text: str, level: int) -> str:
    """Brand, colour, size and material."""
    body = text.lower()
    colours = _COLOURS[: (5, 8, 11, 11)[level - 1]]
    shade = r"((?:dark|light|pale) )?" if level >= 2 else r"()"
    colour = re.search(rf"\b{shade}({'|'.join(colours)})\b", body)
    materials = _MATERIALS[: (5, 9, 14, 14)[level - 1]]
    kind = r"((?:recycled|organic|stainless|solid) )?" if level >= 2 else r"()"
    material = re.search(rf"\b{kind}({'|'.join(materials)})\b", body)
    size = re.search(r"\bsize (\w+)", body) or (
        re.search(r"\b(\d+(?:\.\d+)? ?(?:l|ml|cm|mm))\b", body) if level >= 2 else None
    )
    if size is None and level >= 4:
        size = re.search(r"\b(xs|xl|xxl)\b", body)
    words = text.split()
    return json.dumps(
        {
            "brand": words[0].strip(",") if words else None,
            "colour": "".join(part or "" for part in colour.groups()) if colour else None,
            "size": size.group(1) if size else None,
            "material": "".join(part or "" for part in material.groups()) if material else None,
        }
    )


def personal_data(text: str, level: int) -> str:
    """Names, phones, e-mail addresses and streets."""
    found = [("email", one) for one in re.findall(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", text)]
    phone = r"\+?\d[\d -]{5,}\d" if level >= 2 else r"\d{3}-\d{4}"
    found += [("phone", one) for one in re.findall(phone, text)]
    name = r"\b[A-Z][a-z]+ [A-Z][a-z]+\b"
    streets: list[str] = []
    if level >= 3:
        streets = re.findall(r"\b\d+ [A-Z]\w+ (?:Street|Road|Lane|Avenue|Square)\b", text)
        found += [("address", one) for one in streets]
    for one in re.findall(name, text):
        if any(one in street for street in streets):
            continue
        if level >= 2 and one.split()[0] in ("Dear", "Call", "Please", "The", "Our", "Write", "Contact", "Mail"):
            continue
        found.append(("name", one))
    if level >= 4:
        found += [("name", one) for one in re.findall(r"\b(?:Mr|Ms|Dr)\.? ([A-Z][a-z]+)\b(?! [A-Z])", text)]
    return json.dumps({"entities": [{"type": kind, "text": one} for kind, one in dict.fromkeys(found)]})


def date_in(text: str, level: int) -> str | None:
    """The first date, as YYYY-MM-DD."""
    if found := re.search(r"\b(\d{4})-(\d{2})-(\d{2})\b", text):
        return found.group()
    month = "|".join(_MONTHS)
    if found := re.search(rf"\b(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?({month}) (\d{{4}})\b", text, re.IGNORECASE):
        day, name, year = found.groups()
        return _date(year, _MONTHS.index(name.lower()) + 1, day)
    if level >= 2 and (found := re.search(rf"\b({month}) (\d{{1,2}}),? (\d{{4}})\b", text, re.IGNORECASE)):
        name, day, year = found.groups()
        return _date(year, _MONTHS.index(name.lower()) + 1, day)
    if level >= 3 and (found := re.search(r"\b(\d{1,2})[./](\d{1,2})[./](\d{4})\b", text)):
        day, number, year = found.groups()
        return _date(year, int(number), day)
    return None


def _date(year: str, month: int, day: str) -> str:
    return f"{year}-{month:02}-{int(day):02}"
