"""tritonclient's protobuf messages, without the rest of that package.

Floor: edge. The package's own ``__init__`` brings a client that we don't use and numpy, 17 MB in each worker. So it is
stood in for while its generated module is loaded; whoever wants the whole package can still import it afterwards.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

_PACKAGE = "tritonclient.grpc"
_MESSAGES = f"{_PACKAGE}.service_pb2"


def _load() -> ModuleType:
    if _MESSAGES in sys.modules or _PACKAGE in sys.modules:
        return importlib.import_module(_MESSAGES)
    outer = importlib.util.find_spec("tritonclient")
    if outer is None or outer.submodule_search_locations is None:
        raise ModuleNotFoundError("tritonclient[grpc] is not installed")
    stand_in = ModuleType(_PACKAGE)
    stand_in.__path__ = [f"{folder}/grpc" for folder in outer.submodule_search_locations]
    sys.modules[_PACKAGE] = stand_in
    try:
        return importlib.import_module(_MESSAGES)
    finally:
        if sys.modules.get(_PACKAGE) is stand_in:
            del sys.modules[_PACKAGE]


messages = _load()
"""The generated module ``service_pb2``: KServe's inference protocol with Triton's extensions."""
