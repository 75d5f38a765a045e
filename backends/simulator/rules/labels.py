"""Choosing among labels, by words that speak for each.

Pure.
"""

# ruff: noqa: E501  lists of words are easier to read in long lines
import re
from collections.abc import Mapping
from typing import Final

_CHOICES: Final = re.compile(r"one of(?: these [a-z ]+)?:\s*([^.\n]+)", re.IGNORECASE)
_SHARE: Final = {1: 0.35, 2: 0.6, 3: 0.85, 4: 1.0}
"""How much of each list a program of a level knows."""

WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    # comments
    "insult": ("idiot", "stupid", "moron", "pathetic", "clown", "fool", "dumb", "loser", "embarrassing", "brainless",
               "worthless", "ignorant", "joke of a"),
    "threat": ("kill you", "find you", "hurt you", "watch your back", "regret", "come for you", "burn", "pay for this",
               "where you live", "break your", "sleep well", "last warning"),
    "spam": ("buy", "cheap", "link", "subscribe", "free", "discount", "click", "profile", "earn", "followers", "promo",
             "giveaway", "crypto", "dm me"),
    # intents
    "book": ("book", "reserve", "reservation for", "i'd like a room", "table for", "need a room", "get a table", "stay",
             "for two nights", "arrange", "tickets for", "squeeze us in"),
    "change": ("change", "move", "reschedule", "instead", "different", "earlier", "later", "switch", "swap", "postpone",
               "bring forward", "adjust", "rather have"),
    "cancel": ("cancel", "call off", "refund my booking", "no longer", "won't come", "not coming", "delete my", "drop",
               "can't make it", "forget about", "withdraw"),
    "ask": ("what", "when", "how", "do you", "is there", "are dogs", "opening", "where", "which", "can i", "allowed",
            "far"),
    "complain": ("complain", "terrible", "dirty", "rude", "unacceptable", "cold", "broken", "disappointed", "awful",
                 "waited", "noise", "manager", "smelled"),
    # reviews
    "positive": ("best", "great", "love", "lovely", "perfect", "excellent", "recommend", "amazing", "friendly", "wonderful",
                 "delicious", "beautiful", "flawless", "charming", "delight", "gem"),
    "negative": ("never again", "broke", "bad", "terrible", "waste", "worst", "awful", "rude", "refund", "waited", "cold",
                 "noisy", "dirty", "overpriced", "dull", "slow", "soggy", "grumpy"),
    # tickets
    "billing": ("charged", "invoice", "refund", "subscription", "payment", "card", "price", "receipt", "vat", "billed",
                "bank", "renewal fee", "money"),
    "technical": ("crash", "error", "bug", "freezes", "slow", "blank", "does not load", "sync", "update", "button",
                  "screen", "spinner", "fails", "hangs"),
    "account": ("password", "login", "log in", "e-mail address", "account", "username", "two-factor", "profile",
                "locked out", "sign in", "verification", "deactivate"),
    "shipping": ("parcel", "delivery", "tracking", "package", "arrive", "courier", "address label", "shipped", "delayed",
                 "doorstep", "lost in", "carrier"),
    # documents
    "letter": ("dear", "sincerely", "kind regards", "yours", "writing to you", "best wishes", "enclosed"),
    "form": ("please fill", "tick", "applicant", "date of birth", "signature:", "block letters", "office use"),
    "invoice": ("invoice", "total due", "vat", "payment terms", "amount", "bill to", "iban"),
    "report": ("summary", "findings", "figure", "results", "conclusion", "table of", "analysis", "quarter"),
    "contract": ("agreement", "parties", "hereby", "governing law", "term of", "shall", "whereas", "clause"),
    "resume": ("experience", "education", "skills", "references", "employment", "curriculum", "languages spoken"),
}  # fmt: skip
_REST: Final = ("other", "ok", "ask")
"""What it is when nothing else speaks up."""


def choose(instructions: str, text: str, level: int) -> str:
    """One of the labels that the instructions name."""
    found = _CHOICES.search(instructions)
    labels = [label.strip() for label in found.group(1).split(",")] if found else []
    if not labels:
        return "?"
    # Where both are one message, the text stands around the instructions; the labels themselves say nothing.
    body = (text[: found.start()] + text[found.end() :] if found and text == instructions else text).lower()
    votes = {label: _votes(label, body, level) for label in labels}
    if "mixed" in votes:
        if votes.get("positive") and votes.get("negative"):
            return "mixed"
        if level > 1 and " but " in body:
            return "mixed"
    best = max(labels, key=lambda label: votes[label])
    if votes[best]:
        return best
    return next((label for label in _REST if label in labels), labels[0])


def _votes(label: str, body: str, level: int) -> int:
    words = WORDS.get(label, ())
    known = words[: max(1, round(len(words) * _SHARE[level]))]
    return sum(len(re.findall(rf"\b{re.escape(word)}", body)) for word in known)
