"""`metaformer train RECIPE [CONFIG.yaml] --FIELD VALUE …`."""

import argparse
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from metaformer.cli.parser import Parser, UsageError, add_import, explain
from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, MetaFormerError
from metaformer.process import encoding_remedy
from metaformer.recipes import RECIPES, find
from metaformer.recipes.recipe import Recipe
from metaformer.serialize import check_yaml, field_types, from_dict, shown
from metaformer.storage import read_text
from metaformer.weights.trained import trained_with

USAGE = """usage: metaformer train RECIPE [CONFIG.yaml] --data.root DIR --out RUN [--FIELD VALUE …]

Train with the settings of a recipe; a YAML file and then the command line change its fields.
`metaformer train RECIPE --help` shows all fields with the recipe's values,
`metaformer train RECIPE --print_config` writes them as YAML.

recipes:
"""
OWN = ("out", "resume", "import", "config", "print_config")
EXAMPLE = "metaformer train finetune --data.root flowers --out runs/flowers --model.name caformer_s18"
FIRST = ("finetune", "demo/")
"""Recipes that most people look for begin so; the help lists them before those of published runs."""
LARGEST = 1_000_000
"""Bytes of a configuration, at most."""


def run(argv: list[str]) -> int:
    """Train; progress is printed on standard error."""
    if argv and argv[0] in ("-h", "--help"):
        names = sorted(
            RECIPES, key=lambda name: (not name.startswith(FIRST[0]), not name.startswith(FIRST[1]))
        )
        print(USAGE + "\n".join(f"  {name}" for name in names) + f"\n\nexample:\n  {EXAMPLE}")
        return 0
    if not argv or argv[0].startswith("-"):
        raise UsageError("train: name a recipe first (metaformer list --recipes), then its options")
    recipe = find(argv[0])
    own = Parser("train", "", "", add_help=False)
    add_own(own, recipe)
    args, rest = own.parse_known_args(argv[1:])
    config = resolve(recipe, rest)
    own.run_import(vars(args))
    from metaformer.training.train import train

    train(config, args.out, args.resume, _command(argv))
    return 0


def _command(argv: list[str]) -> str:
    """The shell's line that resumes this run."""
    before = ["", *argv]
    args = [
        arg
        for arg, last in zip(argv, before, strict=False)
        if last != "--resume" and arg.partition("=")[0] != "--resume"
    ]
    args += ["--resume", "auto"]
    nodes, processes = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return shlex.join(["metaformer", "train", *args])
    launcher = ["torchrun", "--nnodes", nodes, "--nproc-per-node", processes, "-m", "metaformer", "train"]
    return shlex.join([*launcher, *args])


def resolve(recipe: Recipe, argv: list[str]) -> TrainConfig:
    """A recipe's settings, changed by a YAML file (the first argument, or --config) and by dotted options.

    Raises:
        UsageError: an unknown field or a value of another type.
    """
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    for file in _files(argv):
        with suppress(yaml.YAMLError):  # the parser reports it below, as it does a missing file
            if os.path.lexists(file):
                check_yaml(read_text(file, ConfigError, largest=LARGEST), file, ConfigError)
    recipe = _as_trained(recipe, argv)
    parser = _parser(recipe, show_own=any(arg in ("-h", "--help") for arg in argv))
    if len(argv) > 1 and argv[0] == "--config":  # alone first, so that its errors name the file
        alone = _read(parser, recipe, argv[:2], f"{argv[1]}: ")
        alone.pop("config", None)
        try:
            from_dict(TrainConfig, alone)
        except ConfigError as error:
            raise ConfigError(f"{argv[1]}: {error}") from error
    values = _read(parser, recipe, argv)
    root = values["data"]["root"]  # training says where there is no such folder
    if recipe.fits_data and root and Path(root).expanduser().is_dir():
        values = _fit(parser, recipe, argv, values)
    values.pop("config", None)
    return from_dict(TrainConfig, values)


def _as_trained(recipe: Recipe, argv: list[str]) -> Recipe:
    """A recipe that starts from published weights, with the size and crop of those that the options name."""
    from metaformer.tasks import TASKS

    cropped = "evaluate.crops" not in TASKS[recipe.config.task].unused  # other tasks keep the images' shape
    if not recipe.config.model.pretrained or not cropped:
        return recipe
    asked = [arg for arg in argv if arg not in ("-h", "--help") and not arg.startswith("--print_config")]
    try:
        values = _read(_parser(recipe, show_own=False), recipe, asked)
        values.pop("config", None)
        trained = trained_with(from_dict(TrainConfig, values).model)
    except (ConfigError, UsageError):  # reported with the file's name
        return recipe
    if trained is None:
        return recipe
    data = replace(recipe.config.data, image_size=trained.image_size)
    evaluate = replace(recipe.config.evaluate, crop=trained.crop)
    return replace(recipe, config=replace(recipe.config, data=data, evaluate=evaluate))


def _fit(parser: Any, recipe: Recipe, argv: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """The settings with sizes and batch that fit the data, where neither file nor option gives them."""
    from metaformer.tasks import TASKS

    config = from_dict(TrainConfig, {name: value for name, value in values.items() if name != "config"})
    fit = TASKS[config.task].fit_data
    if fit is None:
        return values
    parser.set_defaults(dict(fit(config)))
    fitted = _read(parser, recipe, argv)
    if os.environ.get("RANK", "0") == "0":
        before, after = _leaves(values), _leaves(fitted)
        chosen = [f"{name} {after[name]}" for name in after if after[name] != before.get(name)]
        if chosen:
            print(f"to fit the data: {', '.join(chosen)}", file=sys.stderr)
    return fitted


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _files(argv: list[str]) -> list[Path]:
    """Configuration files that the arguments name; the parser takes one for a section, too."""
    options = {f"--{name}" for name in ("config", *field_types(TrainConfig))}
    named = [(arg, after) for arg, after in pairwise(argv) if arg in options]
    split = (arg.partition("=") for arg in argv)
    named += [(option, name) for option, equals, name in split if equals and option in options]
    return [Path(name) for option, name in named if option == "--config" or os.path.exists(name)]


def _read(parser: Any, recipe: Recipe, argv: list[str], where: str = "") -> dict[str, Any]:
    try:
        values: dict[str, Any] = parser.parse_args(argv).as_dict()
    except UnicodeDecodeError as error:
        remedy = encoding_remedy(error.object.decode(errors="ignore"))
        raise UsageError(f"train: {where}not a text file{remedy}") from error
    except (OverflowError, RecursionError, ValueError, TypeError) as error:  # of the parser on odd values
        if isinstance(error, MetaFormerError):
            raise
        reason = shown(str(error), quote=False)
        raise UsageError(f"train: {where}a value that no field can have ({reason})") from error
    except argparse.ArgumentError as error:
        known = (f"--{field}" for field in (*OWN, *_dotted(asdict(recipe()))))
        raise UsageError(f"train: {where}{explain(str(error), known)}") from error
    _restore(values, argv)
    return values


def _restore(values: dict[str, Any], argv: list[str]) -> None:
    """Put back options that begin with #, such as a color: to YAML they are comments, and so null."""
    for option, value in [*pairwise(argv), *(arg.partition("=")[::2] for arg in argv)]:
        section, _, name = option.removeprefix("--").rpartition(".")
        if value.startswith("#") and values.get(section, {}).get(name, value) is None:
            values[section][name] = value


def _parser(recipe: Recipe, show_own: bool) -> Any:
    """The fields of TrainConfig as options, with the recipe's values for defaults."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Descriptions as they are written."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"metaformer train {recipe.name}",
        usage="%(prog)s [CONFIG.yaml] --data.root DIR --out RUN [--FIELD VALUE …]",
        description=recipe.__doc__,
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    if show_own:
        add_own(parser, recipe)
    parser.add_argument("--config", action="config", metavar="FILE.yaml", help="file with fields to change")
    parser.add_class_arguments(TrainConfig, None, as_group=False)
    parser.set_defaults(asdict(recipe()))
    return parser


def add_own(parser: Any, recipe: Recipe) -> None:
    """Add options that are no part of a configuration, so that a file cannot set them."""
    add, out = parser.add_argument, f"runs/{recipe.name.replace('/', '-')}"
    add("--out", metavar="RUN", default=out, help="run directory")
    add("--resume", metavar="auto|PATH", help="resume from the newest checkpoint, or from this one")
    add_import(parser)


def _dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name, value in values.items():
        names.append(prefix + name)
        names += _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else []
    return names
