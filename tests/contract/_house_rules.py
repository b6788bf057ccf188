"""The house rules as functions over source text, so that each can be shown to catch what it forbids."""

import ast
from collections.abc import Iterator
from pathlib import Path

ORDER = (
    "errors < registry < config < data < tokens < kernels < baselines < item_encoders < lm < models < "
    "objectives < evaluation < run_dir < training < compare < serving < commands"
)
LAYERS = ORDER.split(" < ")
"""A layer imports from those before it and from itself."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_ARGUMENTS = 7
PICKLE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything imported anywhere, `from a import b` as a.b."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def against_the_direction(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of a later layer, or of the package's own front, which reaches every layer."""
    here = module.split(".")[1]
    if here not in LAYERS:
        return [f"{module} is in no layer; the layers are {', '.join(LAYERS)}"]
    found = []
    for line, name in imported(source, module, is_package):
        parts = name.split(".")
        if parts[0] != "lexrec" or name == "lexrec.__version__":
            continue
        if len(parts) < 2 or parts[1] not in LAYERS:
            found.append(f"{module}:{line} imports {name}: name the module it comes from")
        elif LAYERS.index(parts[1]) > LAYERS.index(here):
            found.append(f"{module}:{line} imports {name}, which comes after {here}")
    return found


def too_big(source: str, file: str) -> list[str]:
    """Files and functions over their budget, and functions with too many arguments."""
    lines = len(source.splitlines())
    found = [f"{file} has {lines} lines"] if lines > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            found.append(f"{file}:{node.lineno} {node.name} has {length} lines")
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in names if name not in {"self", "cls"}])
        if count > MAX_ARGUMENTS and not _is_kernel(node):
            found.append(f"{file}:{node.lineno} {node.name} has {count} arguments")
    return found


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """What a device or torch's dispatcher calls: it can be given no more than plain tensors and numbers."""
    decorators = [ast.unparse(one) for one in node.decorator_list]
    marks = ("triton.jit", "custom_op", "register_fake")
    return any(one == "kernel" or any(mark in one for mark in marks) for one in decorators)


def pickle_loading(source: str, file: str) -> list[str]:
    """Every way to load a pickle that standard libraries, torch, numpy and pandas offer."""
    tree = ast.parse(source)
    found = []
    for line, name in imported(source, file, is_package=False):
        if name.split(".")[0] in PICKLE_MODULES or name in {"torch.load", "numpy.load"}:
            found.append(f"{file}:{line} imports {name}")
    called = {"torch": "torch", "np": "numpy", "numpy": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            called |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "read_pickle":
            found.append(f"{file}:{node.lineno} uses read_pickle")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = called.get(ast.unparse(node.func.value))
            safe = any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) == "False"
                for keyword in node.keywords
            )
            if node.func.attr == "load" and (owner == "torch" or (owner == "numpy" and not safe)):
                found.append(f"{file}:{node.lineno} calls {ast.unparse(node)[:60]}")
    return found


def module_name(path: Path, root: Path) -> str:
    """lexrec/data/batch.py -> lexrec.data.batch; a package's __init__ -> the package."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
