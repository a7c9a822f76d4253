"""Name to class, and the little notation `pooling(size=5)` in which configurations name one."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Generic, TypeVar

from metaformer.errors import ConfigError, UnknownName
from metaformer.serialize import decode

T = TypeVar("T")
Factory = Callable[..., T]
_LONGEST = 1000  # characters of a name with its options
_FILE: Final = "metaformer_file_"
"""First part of the names of modules that users' files become."""
_PLAIN: Final = [int, float, bool, str, int | None, float | None, bool | None, str | None]
"""Types whose values are checked before a class is called."""


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Split `"attention(head_dim=32)"` into its name and options; values are Python literals.

    Raises:
        ConfigError: the text is not a name, or a name with literal keyword options.
    """
    try:
        if len(spec) > _LONGEST:
            raise ValueError
        tree = ast.parse(spec.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            options = {word.arg: ast.literal_eval(word.value) for word in tree.keywords if word.arg}
            if len(options) == len(tree.keywords):
                return tree.func.id, options
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # of nested brackets
        pass
    raise ConfigError(
        f"cannot read {spec[:100]!r}: write a name, or a name with options as in 'pooling(size=5)'"
    )


class Registry(Generic[T]):
    """Classes of one kind by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, Factory[T]] = {}
        self._modules: dict[str, ModuleType | None] = {}
        """Modules of the classes, by name."""
        self._fixed_grid: set[str] = set()

    def register(self, name: str, *, fixed_grid: bool = False) -> Callable[[type[T]], type[T]]:
        """Enter the decorated class under `name`; `fixed_grid` classes are also given `grid=(H, W)`.

        The same class may come again, as when a file is read twice or a cell of a notebook runs again.

        Raises:
            ConfigError: the name is taken by another class, or is not a Python identifier.
        """

        def enter(cls: type[T]) -> type[T]:
            known, module = self._classes.get(name), sys.modules.get(cls.__module__)
            if not name.isidentifier():
                raise ConfigError(f"{self.kind} name {name!r} must be a Python identifier")
            if known is not None and getattr(known, "__qualname__", "") != cls.__qualname__:
                raise ConfigError(f"{self.kind} {name!r} is registered already: choose another name")
            twice = known is not cls and module is not None and self._modules.get(name) is module
            if twice and cls.__module__.startswith(_FILE):  # which runs once
                raise ConfigError(
                    f"{self.kind} {name!r} is registered by two classes named {cls.__name__}: rename one"
                )
            self._classes[name], self._modules[name] = cls, module
            if fixed_grid:
                self._fixed_grid.add(name)
            return cls

        return enter

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __getitem__(self, name: str) -> Factory[T]:
        if name not in self._classes:
            raise UnknownName(self.kind, name, self._classes)
        return self._classes[name]

    def fixed_grid(self, name: str) -> bool:
        """Tell whether the class of this name works on one grid only."""
        return name in self._fixed_grid

    def build(self, spec: str, *args: Any, **context: Any) -> T:
        """Make the object that `spec` names; options in the text win over `context`.

        Raises:
            ConfigError: an unknown name, an unknown option, or an option with a wrong value.
        """
        name, options = parse(spec)
        factory = self[name]
        for option, hint in _hints(factory, options).items():
            decode(hint, options[option], f"{self.kind} {spec!r}: {option}")
        try:
            return factory(*args, **{**context, **options})
        except TypeError as error:
            raise ConfigError(f"{self.kind} {spec!r}: {error}") from error


def _hints(factory: Callable[..., Any], options: Iterable[str]) -> dict[str, Any]:
    """Types of those options that are declared as numbers, truth values or strings."""
    known = inspect.signature(factory).parameters
    hints = {name: known[name].annotation for name in options if name in known}
    return {name: hint for name, hint in hints.items() if hint in _PLAIN}


def import_files(paths: Iterable[str | Path]) -> None:
    """Run several files, each once; see `import_file`."""
    for path in {Path(path).resolve(): path for path in paths}.values():
        import_file(path)


def import_file(path: str | Path) -> None:
    """Run a user's Python file, so that what it registers can be named; only ever for a path the user typed.

    Raises:
        ConfigError: no such file, or an error in it, with the line.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"{_FILE}{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{path}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a file that leaves must not end the command as if it were done
        raise ConfigError(
            f"{path}: line {_line(error, spec.origin)}: {type(error).__name__}: {error}"
        ) from error


def _line(error: BaseException, file: str | None) -> int | str:
    """Where in this file an error arose."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno or "?"
    line: int | str = "?"
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
