"""What stands in a PDF of plain text, as a model that sees would read it.

Only content streams that are not compressed, with text shown by ``Tj``: enough for the documents that we make
ourselves.

Pure.
"""

import re
from base64 import b64decode
from typing import Any

_SHOWN = re.compile(rb"\(((?:\\.|[^\\()])*)\)\s*Tj")
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def document_text(file: Any) -> str:
    """The lines of text in the PDF of a ``file`` part; empty for anything else."""
    url = file.get("file_data") if isinstance(file, dict) else None
    if not isinstance(url, str) or not url.startswith("data:application/pdf;base64,"):
        return ""
    try:
        data = b64decode(url.partition(",")[2], validate=True)
    except ValueError:
        return ""
    return "\n".join(_ESCAPED.sub(rb"\1", line).decode("latin-1") for line in _SHOWN.findall(data))


def plain_pdf(lines: list[str]) -> bytes:
    """A PDF of one page with these lines, in Latin-1."""
    shown = b"".join(
        b"(" + re.sub(rb"([\\()])", rb"\\\1", line.encode("latin-1", "replace")) + b") Tj 0 -16 Td\n" for line in lines
    )
    content = b"BT /F1 11 Tf 56 780 Td\n" + shown + b"ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + b"xref\n0 %d\n0000000000 65535 f \n%btrailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        table,
        len(objects) + 1,
        len(data),
    )
