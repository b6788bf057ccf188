"""Whether one model is better than another, found out rather than hoped: seeds, statistics, search.

`compare` is a package and a public function, so the package can be called: `lexrec.compare(...)` is
`lexrec.compare.compare.compare(...)`.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        from lexrec.compare.compare import compare

        return compare(*args, **settings)


sys.modules[__name__].__class__ = _Callable
