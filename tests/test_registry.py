from pathlib import Path

import pytest
from torch import nn

from metaformer.errors import ConfigError, UnknownName
from metaformer.mixers import MIXERS
from metaformer.registry import Registry, import_file, parse


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pooling", ("pooling", {})),
        (" pooling( size = 5 ) ", ("pooling", {"size": 5})),
        ("a(b='c', d=(1, 2), e=None)", ("a", {"b": "c", "d": (1, 2), "e": None})),
        ("a()", ("a", {})),
    ],
)
def test_specs(spec: str, expected: tuple[str, dict[str, object]]) -> None:
    assert parse(spec) == expected


@pytest.mark.parametrize(
    "spec", ["", "a.b", "a(1)", "a(b=c)", "a(**{})", "__import__('os').system('x')", "a(b=f())", "a)"]
)
def test_only_names_with_literal_options(spec: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        parse(spec)


def test_build_and_its_errors() -> None:
    registry: Registry[nn.Module] = Registry("thing")

    @registry.register("box", fixed_grid=True)
    class Box(nn.Module):
        def __init__(self, dim: int, size: int = 1) -> None:
            super().__init__()
            self.dim, self.size = dim, size

    box = registry.build("box(size=3)", 7)
    assert (box.dim, box.size) == (7, 3)
    assert list(registry) == ["box"] and registry.fixed_grid("box") and "box" in registry
    with pytest.raises(UnknownName, match="unknown thing 'bex': did you mean box"):
        registry.build("bex", 1)
    with pytest.raises(ConfigError, match="color"):
        registry.build("box(color=1)", 1)
    registry.register("box")(Box)  # the same class again, as when a user's file is read twice
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("box")(nn.Identity)
    with pytest.raises(ConfigError, match="identifier"):
        registry.register("my box")(nn.Identity)


TWICE = """from torch import nn
from metaformer.mixers import MIXERS

@MIXERS.register("own_twice")
class Own(nn.Identity):
    pass


@MIXERS.register("own_twice")
class Own(nn.Identity):
    pass
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n\ndef f(:\n", "line 3: SyntaxError"),
        ("x = 1\nimport nowhere_to_be_found\n", "line 2: ModuleNotFoundError"),
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit"),
        (TWICE, "line 9: ConfigError: mixer 'own_twice' is registered by two classes named Own: rename one"),
    ],
)
def test_errors_in_a_users_file_name_the_line(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as users name it: by a relative path
    Path("own.py").write_text(text)
    with pytest.raises(ConfigError, match=rf"own\.py: {told}"):
        import_file("own.py")


def test_a_users_file_may_be_read_again(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(TWICE.rpartition("\n\n\n")[0].replace("own_twice", "own_once"))
    for _ in range(2):
        import_file(file)
    assert "own_once" in MIXERS
