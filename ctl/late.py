"""Modules that a command line is parsed without.

Each command has its flags beside its work, and TAB waits for its module's imports. What takes long to import is bound so there:

    if TYPE_CHECKING:
        import yaml
    else:
        yaml = late.module("yaml")
"""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType


def module(name: str) -> ModuleType:
    """The module, which is executed when first something of it is used.

    Raises:
        ModuleNotFoundError: There is none.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec.loader = LazyLoader(spec.loader)
    made = module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made
