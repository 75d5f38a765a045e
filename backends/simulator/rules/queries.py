"""Questions to SQL, by patterns of questions over one table.

Pure. What comes of it is text for a sandbox, as whatever a model writes.
"""
# ruff: noqa: S608

import re


def sql(text: str, level: int) -> str:
    """A query, or one that is surely wrong."""
    table = re.search(r"CREATE TABLE (\w+)\s*\(([^)]*)\)", text, re.IGNORECASE)
    if table is None:
        return "SELECT NULL"
    name = table.group(1)
    columns = [part.split()[0] for part in table.group(2).split(",") if part.split()]
    asked = text[table.end() :].rpartition("question:")[2]
    question = asked.lower()
    named = [column for column in columns if re.search(rf"\b{column}s?\b", question)]
    numbers = re.findall(r"\b\d+(?:\.\d+)?\b", question)
    quoted = re.search(r"'([^']+)'", asked)
    where = f" WHERE {_text_column(columns)} = '{quoted.group(1)}'" if quoted and level >= 3 else ""
    if "how many different" in question and level >= 2 and named:
        return f"SELECT count(DISTINCT {named[0]}) FROM {name}"
    if "how many" in question:
        return f"SELECT count(*) FROM {name}{where}"
    amount = _amount(columns)
    if amount and ("average" in question or "mean" in question) and level >= 2:
        return f"SELECT avg({amount}) FROM {name}{where}"
    if amount and ("in all" in question or "altogether" in question) and numbers and level >= 4:
        return f"SELECT {columns[1]} FROM {name} GROUP BY {columns[1]} HAVING sum({amount}) > {numbers[0]}"
    if amount and ("total" in question or "sum" in question or "in all" in question):
        return f"SELECT sum({amount}) FROM {name}{where}"
    if amount and ("largest" in question or "highest" in question or "most" in question) and level >= 2:
        return f"SELECT {columns[1]} FROM {name} ORDER BY {amount} DESC LIMIT 1"
    if amount and ("more than" in question or "over" in question) and numbers and level >= 2:
        return f"SELECT {columns[1]} FROM {name} WHERE {amount} > {numbers[0]}"
    if named:
        return f"SELECT {', '.join(named)} FROM {name}{where}"
    return f"SELECT * FROM {name}"


def _amount(columns: list[str]) -> str | None:
    return next((column for column in columns if column in ("total", "price", "amount", "salary", "hours")), None)


def _text_column(columns: list[str]) -> str:
    return columns[1] if len(columns) > 1 else columns[0]
