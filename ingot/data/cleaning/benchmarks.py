"""The texts of benchmarks: which files a recipe names, and what is read from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ingot.data.cleaning.section import Benchmark
from ingot.recipe import InputError, nearest


def benchmark_files(benchmark: Benchmark, key: str) -> list[Path]:
    """The files of a benchmark, sorted; of an lm-eval task, the local files that it reads.

    Raises: InputError when there is none.
    """
    from ingot.data.sources import Source, source_files

    path = Path(benchmark.path)
    if path.suffix not in (".yaml", ".yml"):
        return source_files(Source(path=benchmark.path, where={}), key)
    named = _files_of_task(path, key)
    for file in named:
        if not file.is_file():
            raise InputError(f"{key}.path: {path} reads {file}, which does not exist (looked from {Path.cwd()})")
    return named


def _files_of_task(path: Path, key: str) -> list[Path]:
    """The data files in a task's `dataset_kwargs`."""
    try:
        task = YAML(typ="rt").load(path.read_text(encoding="utf-8"))  # takes the tags of lm-eval, such as !function
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise InputError(f"{key}.path: {path} cannot be read: {str(error).splitlines()[0]}") from None
    arguments = task.get("dataset_kwargs") if isinstance(task, dict) else None
    files = arguments.get("data_files") if isinstance(arguments, dict) else None
    found = sorted({Path(text) for text in _texts(files)})
    if not found:
        raise InputError(f"{key}.path: {path} names no dataset_kwargs.data_files; name the benchmark's files instead")
    return found


def name_of(benchmark: Benchmark, path: Path) -> str:
    """What a benchmark's file is called in reports: the name in the recipe, else folder/file."""
    if benchmark.name is not None:
        return benchmark.name
    path = path.absolute()
    return f"{path.parent.name}/{path.name.split('.')[0]}"


def benchmark_rows(benchmark: Benchmark, path: Path) -> Iterator[list[str]]:
    """The texts of every row: those in the columns that the recipe names, lists and mappings opened.

    Raises: InputError that names file and line for a column that is not there.
    """
    from ingot.data.readers import read_rows
    from ingot.data.sources import Source, list_units

    for unit in list_units([Source(path=str(path), where={})]):
        for place, row in read_rows(unit):
            for name in benchmark.columns:
                if name not in row:
                    meant = nearest(name, set(row))
                    hint = f" (did you mean '{meant}'?)" if meant else ""
                    raise InputError(f"{place}: no column '{name}'{hint}; the columns are {', '.join(row)}")
            yield list(_texts([row[name] for name in benchmark.columns or row]))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
