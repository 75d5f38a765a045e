"""The vendors that can be asked, by the names that catalogues have for them.

Floor: control (pure).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.control.vendors.anthropic import Anthropic
from gateway.control.vendors.google import Google
from gateway.control.vendors.openai import OpenAI
from gateway.control.vendors.port import Vendor

VENDORS: Final[Mapping[str, Vendor]] = {
    "openai": OpenAI(),
    "anthropic": Anthropic(),
    "google": Google(),
    # Of the demonstration: an engine on this host that plays a vendor.
    "demo": OpenAI(),
}
