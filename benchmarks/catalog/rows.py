"""Rows of our own making for every task of the demonstration catalogue: drawn from lists, with a fixed seed.

They are easy on purpose and hold no data of anybody: names, companies and places are made up.
"""

# ruff: noqa: E501  lists of phrases are easier to read in long lines
from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

ROWS: Final = 60
SEED: Final = 20261123
_MONTHS: Final = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
                  "November", "December")  # fmt: skip
_FIRMS: Final = ("Alder Works", "Birch Supply", "Cedar Foods", "Dogwood Advisory", "Elm Logistics", "Fir Storage",
                 "Gorse Paper", "Hazel Print", "Ivy Textiles", "Juniper Labs", "Kestrel Freight", "Linden Care")  # fmt: skip
_FORMS: Final = ("Ltd", "GmbH", "Inc", "LLP", "BV", "SA", "Co")
_LANDS: Final = ("Ireland", "New York", "Germany", "England", "France", "Delaware")
_NATIONS: Final = {"Dutch": "Netherlands", "English": "England", "German": "Germany", "Swiss": "Switzerland"}
_WORDS: Final = {12: "twelve", 24: "twenty-four", 36: "thirty-six", 30: "thirty", 60: "sixty", 90: "ninety"}
_FIRST: Final = ("Kim", "Lea", "Noah", "Mira", "Jon", "Ada", "Tom", "Ines")
_LAST: Final = ("Larch", "Maple", "Oakes", "Rowan", "Thorne", "Willow", "Ashby", "Hollis")


@dataclass(frozen=True, slots=True)
class Row:
    """A row as an eval set takes it, and the lines of its document, if it has one."""

    row: dict[str, Any]
    document: list[str] = field(default_factory=list)


def rows_of(task_id: str, count: int = ROWS) -> list[Row]:
    """The rows of a task; the same each time. Raises: KeyError, there are none for this task."""
    draw = random.Random(f"{SEED} {task_id}")
    return [MAKERS[task_id](draw) for _ in range(count)]


def _text(input_: Any, expected: Any) -> Row:
    return Row({"input": input_, "expected": expected})


def _date(draw: random.Random) -> tuple[str, str]:
    """A date as people write it, and as machines do."""
    year, month, day = draw.randint(2023, 2026), draw.randint(1, 12), draw.randint(1, 28)
    name = _MONTHS[month - 1]
    written = draw.choice(
        (f"{day} {name} {year}", f"{name} {day}, {year}", f"{year}-{month:02}-{day:02}", f"{day:02}.{month:02}.{year}")
    )
    return written, f"{year}-{month:02}-{day:02}"


def _contract(draw: random.Random) -> Row:
    first, second = (f"{name} {draw.choice(_FORMS)}" for name in draw.sample(_FIRMS, 2))
    written, date = _date(draw)
    term, notice = draw.choice((12, 24, 36)), draw.choice((30, 60, 90))
    sentences = draw.choice(
        (
            [f"This agreement is made on {written} between {first} and {second}."],
            [f"{first} and {second} agree as follows.", f"The agreement enters into force on {written}."],
            [f"Effective date: {written}.", f"Client: {first}.", f"Supplier: {second}."],
        )
    )
    fields: dict[str, str | None] = {"party_a": first, "party_b": second, "effective_date": date}
    if draw.random() < 0.8:
        years = {12: "one year", 24: "two years", 36: "three years"}[term]
        sentences.append(
            draw.choice(
                (f"It runs for {term} months.", f"Term: {_WORDS[term]} ({term}) months.", f"It lasts {years}.",
                 f"It lasts {_WORDS[term]} months.")
            )
        )  # fmt: skip
        fields["term_months"] = str(term)
    if draw.random() < 0.4:
        nation = draw.choice(tuple(_NATIONS))
        sentences.append(f"{nation} law applies.")
        fields["governing_law"] = _NATIONS[nation]
    elif draw.random() < 0.8:
        land = draw.choice(_LANDS)
        sentences.append(draw.choice((f"It is governed by the laws of {land}.", f"Governing law: {land}.")))
        fields["governing_law"] = land
    if draw.random() < 0.7:
        sentences.append(
            draw.choice((f"Either party may end it with {notice} days' notice.",
                         f"Notice: {_WORDS[notice]} ({notice}) days.", f"It ends on {_WORDS[notice]} days of notice."))
        )  # fmt: skip
        fields["notice_days"] = str(notice)
    wanted = {name: fields.get(name) for name in (*fields, "term_months", "governing_law", "notice_days")}
    return _text(" ".join(sentences), wanted)


_TICKETS: Final[Mapping[str, tuple[str, ...]]] = {
    "billing": ("I was charged twice this month.", "The invoice shows the wrong VAT number.",
                "My bank says the renewal fee was taken again.", "Please send a receipt for the last payment.",
                "I want my money back for May.", "Why did the price go up?", "You billed us for nine seats."),
    "technical": ("The app crashes when I open settings.", "I only see a blank screen after the update.",
                  "Sync hangs at 40 percent.", "The save button fails without a word.", "A spinner turns for ever.",
                  "Error 500 on every page.", "Search freezes on long lists."),
    "account": ("I am locked out after three tries.", "Change the e-mail address of my login, please.",
                "I forgot my password.", "Two-factor codes never come.", "Deactivate the profile of a colleague.",
                "My username has a typo.", "Verification of my account does not end."),
    "shipping": ("Where is my parcel?", "Tracking has not moved for a week.", "The courier left it on the wrong doorstep.",
                 "My package is lost in a depot.", "When will the delivery arrive?", "The carrier says it was sent back.",
                 "It was shipped to my old flat."),
    "other": ("Do you have a brochure?", "Your holiday video was nice.", "Are you hiring?", "A partner would like to meet.",
              "Where can journalists ask?", "Thanks for last time!", "Is there a meet-up in spring?"),
}  # fmt: skip
_COMMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "ok": ("Thanks, this saved my weekend!", "I read it twice.", "Good point about the second chapter.",
           "Could you add a picture?", "I disagree, but well argued.", "First time here, nice place.", "Works for me."),
    "insult": ("You are a complete idiot.", "What a pathetic little text.", "Only a moron writes this.",
               "You clown.", "An embarrassing, brainless post.", "Ignorant as always.", "You are a joke of a writer."),
    "threat": ("I will find you.", "Watch your back.", "You will regret this.", "Sleep well while you can.",
               "I know where you live.", "This is your last warning.", "We will come for you tonight."),
    "spam": ("Buy cheap watches now!", "Free followers, link in profile.", "Click here and earn from home.",
             "Crypto giveaway ends today!!!", "DM me for a promo.", "Subscribe for a discount.", "Earn 500 a day."),
}  # fmt: skip
_INTENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "book": ("I'd like a room for two nights.", "Please reserve a table for four.", "Can you squeeze us in on Friday?",
             "We need a room near the lift.", "Two tickets for the late show, please.", "Arrange a tour for six people."),
    "change": ("Could you move my table to eight?", "We would rather have a balcony.", "Please swap Monday and Tuesday.",
               "Make it an earlier train.", "Postpone our visit by a week.", "Bring forward the pick-up, please."),
    "cancel": ("Cancel everything, please.", "We can't make it after all.", "I no longer need the room.",
               "Please withdraw my request.", "Forget about the dinner.", "We won't come on Sunday."),
    "ask": ("Are dogs allowed?", "How far is the station?", "When does breakfast end?", "Is there a lift?",
            "Which rooms face the sea?", "Parking near you?"),
    "complain": ("The room was dirty.", "Your waiter was rude to us.", "We waited an hour for soup.",
                 "The noise kept us awake.", "It smelled of smoke.", "I want to speak to the manager."),
}  # fmt: skip
_GOOD: Final = ("Best film of the year", "I love it", "Perfect fit", "What a gem", "Friendly staff", "A delight to use",
                "Delicious food", "Flawless from start to end", "Charming little place")  # fmt: skip
_BAD: Final = ("It broke after two days", "The worst service", "Soggy fries", "We waited an hour", "A waste of money",
               "Grumpy staff", "Dull and slow", "Overpriced", "Never again")  # fmt: skip


def _labelled(texts: Mapping[str, tuple[str, ...]]) -> Callable[[random.Random], Row]:
    openings = ("", "", "Hello, ", "Hi team. ", "Quick one: ")

    def make(draw: random.Random) -> Row:
        label = draw.choice(tuple(texts))
        return _text(draw.choice(openings) + draw.choice(texts[label]), label)

    return make


def _review(draw: random.Random) -> Row:
    label = draw.choice(("positive", "negative", "mixed"))
    good, bad = draw.choice(_GOOD), draw.choice(_BAD)
    if label == "mixed":
        joined = draw.choice((f"{good}, but {bad[0].lower()}{bad[1:]}.", f"{bad}. Still: {good[0].lower()}{good[1:]}."))
        return _text(joined, label)
    return _text((good if label == "positive" else bad) + draw.choice((".", "!")), label)


def _product(draw: random.Random) -> Row:
    brand = draw.choice(("Ivywear", "Juniper", "Kestrel", "Lindenhof", "Maplewood", "Norn", "Oakline"))
    shade = draw.choice(("", "dark ", "light ", "pale "))
    colour = shade + draw.choice(("red", "blue", "green", "black", "white", "grey", "navy", "beige", "orange", "teal"))
    material = draw.choice(("", "recycled ", "organic ")) + draw.choice(
        ("cotton", "wool", "leather", "nylon", "linen", "polyester", "canvas", "merino", "bamboo", "felt")
    )
    size = draw.choice(("M", "XL", "42", "0.3 l", "30 cm", "XS"))
    thing = draw.choice(("jacket", "mug", "bag", "shirt", "blanket", "bottle"))
    told = size if size[0].isdigit() and " " in size else draw.choice((f"size {size}", size))
    return _text(
        f"{brand} {thing}, {colour}, {told}, {material}",
        {"brand": brand, "colour": colour, "size": size, "material": material},
    )


def _person(draw: random.Random) -> Row:
    first, last = draw.choice(_FIRST), draw.choice(_LAST)
    phone = draw.choice(
        (f"555-{draw.randint(1000, 9999)}", f"+44 20 {draw.randint(1000, 9999)} {draw.randint(100, 999)}")
    )
    email = f"{first}.{last}@{draw.choice(('larch', 'maple', 'oak'))}.example".lower()
    street = (
        f"{draw.randint(1, 99)} {draw.choice(('Mill', 'Church', 'Station'))} {draw.choice(('Lane', 'Road', 'Square'))}"
    )
    name = draw.choice((f"{first} {last}", f"Dr. {last}"))
    entities = [{"type": "name", "text": name.removeprefix("Dr. ")}]
    text = f"Please call {name}"
    if draw.random() < 0.8:
        text, entities = f"{text} on {phone}", [*entities, {"type": "phone", "text": phone}]
    if draw.random() < 0.7:
        text, entities = f"{text} or write to {email}", [*entities, {"type": "email", "text": email}]
    if draw.random() < 0.5:
        text, entities = f"{text}, at home at {street}", [*entities, {"type": "address", "text": street}]
    return _text(f"{text}.", {"entities": entities})


_DIAGNOSES: Final = (
    ("Essential hypertension, well controlled", "I10"), ("High blood pressure since 2019", "I10"),
    ("Bronchial asthma, uncomplicated", "J45.909"), ("Type 2 diabetes without complications", "E11.9"),
    ("Community-acquired pneumonia", "J18.9"), ("Migraine, not intractable", "G43.909"),
    ("Primary hypothyroidism", "E03.9"), ("Underactive thyroid", "E03.9"), ("Atrial fibrillation", "I48.91"),
    ("Urinary tract infection", "N39.0"), ("Chronic low back pain", "M54.50"), ("Depressive episode", "F32.A"),
    ("Reflux without oesophagitis", "K21.9"), ("Iron deficiency anaemia", "D50.9"), ("COPD, stable", "J44.9"),
    ("Chronic obstructive lung disease", "J44.9"), ("Acute appendicitis", "K35.80"), ("Heart failure", "I50.9"),
    ("Gout of the left foot", "M10.9"), ("Tension-type headache", "G44.209"), ("Psoriasis", "L40.9"),
)  # fmt: skip


def _diagnosis(draw: random.Random) -> Row:
    text, code = draw.choice(_DIAGNOSES)
    other = draw.choice([one for one, another in _DIAGNOSES if another != code])
    tail = draw.choice((".", ".", f". No {other.split(',')[0].lower()}.", ". Follow-up in six weeks."))
    return _text(text + tail, code)


def _question(draw: random.Random) -> Row:
    table, owner, amount = draw.choice((("orders", "customer", "total"), ("shifts", "worker", "hours"),
                                        ("products", "name", "price"), ("staff", "team", "salary")))  # fmt: skip
    names = draw.sample(("Ada", "Ben", "Cleo", "Dan", "Eve"), 4)
    values = [(number, draw.choice(names), draw.randint(10, 200)) for number in range(1, 9)]
    inserts = ",".join(f"({number},'{name}',{value})" for number, name, value in values)
    schema = f"CREATE TABLE {table} (id INTEGER, {owner} TEXT, {amount} REAL); INSERT INTO {table} VALUES {inserts};"
    who, bound = draw.choice(names), draw.randint(60, 140)
    question, query = draw.choice(
        (
            (f"How many {table} are there?", f"SELECT count(*) FROM {table}"),
            (f"How many different {owner}s are there?", f"SELECT count(DISTINCT {owner}) FROM {table}"),
            (f"What is the sum of {amount}?", f"SELECT sum({amount}) FROM {table}"),
            (f"What is the average {amount}?", f"SELECT avg({amount}) FROM {table}"),
            (f"Which {owner} has the highest {amount}?", f"SELECT {owner} FROM {table} ORDER BY {amount} DESC LIMIT 1"),
            (f"What is the sum of {amount} of '{who}'?", f"SELECT sum({amount}) FROM {table} WHERE {owner} = '{who}'"),
            (f"Which {owner}s have more than {bound} in all?",
             f"SELECT {owner} FROM {table} GROUP BY {owner} HAVING sum({amount}) > {bound}"),
            (f"List each {owner} once, in order.", f"SELECT DISTINCT {owner} FROM {table} ORDER BY {owner}"),
        )
    )  # fmt: skip
    return _text({"schema": schema, "question": question}, query)


_NEWS: Final = (
    ("The {town} council voted to close the {thing} for repairs until {month}.", "Traffic is led over another road.",
     "The works cost two million.", "Shops nearby fear for their trade.",
     "The {thing} of {town} closes for repairs until {month}, and traffic takes another road."),
    ("A storm cut power to {number} homes in {town} on Sunday.", "Crews worked through the night.",
     "Most homes had light again by noon.", "Schools stay shut on Monday.",
     "A storm left {number} homes in {town} without power; most had it back by noon."),
    ("The {town} museum opens a new wing in {month}.", "It shows {number} works of local painters.",
     "Entry is free in the first week.", "The wing took four years to build.",
     "The museum of {town} opens a new wing with {number} works in {month}, free in its first week."),
    ("{town} will plant {number} trees along the river.", "The mayor said shade was needed.",
     "Planting begins in {month}.", "A school class plants the first.",
     "{town} plants {number} trees along the river from {month} for shade."),
)  # fmt: skip


def _news(draw: random.Random) -> Row:
    *sentences, good = draw.choice(_NEWS)
    words = {
        "town": draw.choice(("Alderby", "Birchford", "Cedarton", "Elmsworth")),
        "thing": draw.choice(("old bridge", "harbour road", "north tunnel")),
        "month": draw.choice(_MONTHS),
        "number": str(draw.choice((300, 1200, 4000))),
    }
    return _text(" ".join(sentences).format(**words), good.format(**words))


def _invoice(draw: random.Random) -> Row:
    supplier = f"{draw.choice(_FIRMS)} {draw.choice(_FORMS)}"
    number = draw.choice((f"GP-{draw.randint(1000, 9999)}", f"{draw.randint(2023, 2026)}/{draw.randint(10, 99)}"))
    written, date = _date(draw)
    sign, currency = draw.choice((("EUR", "EUR"), ("€", "EUR"), ("GBP", "GBP"), ("£", "GBP"), ("CHF", "CHF")))
    items = [draw.randint(500, 20_000) for _ in range(draw.randint(1, 3))]
    total = sum(items)
    lines = [supplier, f"Invoice {draw.choice(('no. ', 'number: ', ''))}{number}", f"Date: {written}"]
    lines += [f"Item {place}   {sign} {cents / 100:.2f}" for place, cents in enumerate(items, 1)]
    lines += [f"{draw.choice(('Total', 'Total due'))}: {sign} {total / 100:.2f}", "Payable within 30 days."]
    expected = {"supplier": supplier, "invoice_number": number, "date": date, "currency": currency,
                "total": f"{total / 100:.2f}"}  # fmt: skip
    return Row({"document": None, "expected": expected}, lines)


_DOCUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "letter": ("Dear Ms Rowan,|thank you for your visit last week.|Kind regards,|Ada Hollis",
               "Dear all,|enclosed are the keys.|Best wishes|Tom", "Hello Ines,|the garden is in bloom.|Love, Lea"),
    "form": ("Application|Name of applicant: ____|Date of birth: ____|Signature: ____",
             "Please fill in block letters.|[ ] yes [ ] no|For office use only", "Name ____|Street ____|Tick one: A B C"),
    "invoice": ("Gorse Paper Co|Invoice GP-1043|Total due: EUR 118.40", "Bill to: Elm BV|Amount: 64.00|VAT included",
                "For your order: 12 boxes|To be paid within 14 days"),
    "report": ("Quarterly report|Summary of findings|Figure 1 shows growth.", "Results|The analysis covers 2025.|Conclusion",
               "Water levels at nine wells|They fell by a tenth."),
    "contract": ("Lease agreement|The parties agree as follows.|Governing law: Ireland",
                 "Whereas the owner lets the flat,|the tenant shall pay monthly.", "1. The seller hands over the boat."),
    "resume": ("Noah Maple|Experience: 2019-2024 baker|Education: baking school", "Skills: welding, driving|References on request",
               "Worked at Elm BV, then at Fir SA.|Speaks French."),
}  # fmt: skip


def _document(draw: random.Random) -> Row:
    label = draw.choice(tuple(_DOCUMENTS))
    return Row({"document": None, "expected": label}, draw.choice(_DOCUMENTS[label]).split("|"))


MAKERS: Final[Mapping[str, Callable[[random.Random], Row]]] = {
    "comment-moderation": _labelled(_COMMENTS),
    "contract-key-fields": _contract,
    "doc-classification": _document,
    "icd-coding": _diagnosis,
    "intent-classification": _labelled(_INTENTS),
    "invoice-extraction": _invoice,
    "news-summarisation": _news,
    "pii-redaction": _person,
    "product-attributes": _product,
    "review-sentiment": _review,
    "support-ticket-triage": _labelled(_TICKETS),
    "text-to-sql": _question,
}
