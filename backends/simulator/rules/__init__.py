"""Rule programs: small models without weights, for demonstrations that need answers which can be right or wrong.

A simulator that serves one of `MODELS` answers by rules: it reads what is asked for from the instructions, as a
language model would, and looks for it in the text with lists of words and patterns. The larger ones know more of them.
They are no language models, and what is measured of them says nothing about any.

Pure.
"""

from collections.abc import Mapping
from typing import Final

from backends.simulator.rules.codes import icd_code
from backends.simulator.rules.extract import contract_fields, invoice_fields, personal_data, product_fields
from backends.simulator.rules.labels import choose
from backends.simulator.rules.queries import sql
from backends.simulator.rules.summary import summary

MODELS: Final[Mapping[str, int]] = {"rules-small": 1, "rules-medium": 2, "rules-large": 3, "demo-frontier": 4}
"""How much each knows."""

UNKNOWN: Final = "I cannot do that."


def answer(model: str, instructions: str, text: str) -> str:
    """What a rule program answers.

    Args:
        model: one of `MODELS`.
        instructions: the system message, or empty where they stand in the text.
        text: the user's message.
    """
    level = MODELS[model]
    asked = (instructions or text).lower()
    if "one of:" in asked or "one of these" in asked:
        return choose(instructions or text, text, level)
    for word, program in (
        ("icd-10", icd_code),
        ("sql", sql),
        ("key fields of contracts", contract_fields),
        ("invoice", invoice_fields),
        ("personal data", personal_data),
        ("brand", product_fields),
        ("summar", summary),
        ("sentence", summary),
    ):
        if word in asked:
            return program(text, level)
    return UNKNOWN
