"""Command lines: the flags that scripts share, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from smmile.data.images import MAX_PIXELS
from smmile.errors import UsageError, one_line
from smmile.perturbations.table import KINDS, perturbations_of
from smmile.task import Perturbation

if TYPE_CHECKING:
    from smmile.data.dataset import DatasetName, DatasetSource

_Value = TypeVar("_Value")

EXIT_OK, EXIT_USAGE, EXIT_SOME_ERRORS, EXIT_INTERRUPTED = 0, 2, 3, 130

# The suite's top folder: results/, missing_images/ and so on stand there.
_SUITE = Path(__file__).resolve().parents[2]


class Parser(argparse.ArgumentParser):
    """An argument parser for one script, with an example of its use.

    Flags may be written with `-` or `_` between their words; a mistake is one line and exit code 2.
    """

    def __init__(self, description: str, example: str) -> None:
        super().__init__(
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As the library's, with every flag first spelled as it was declared."""
        given = sys.argv[1:] if args is None else list(args)
        known = {_plain(flag): flag for flag in self._option_string_actions}
        spelled = []
        for index, word in enumerate(given):
            if word == "--":
                spelled += given[index:]
                break
            flag, equals, value = word.partition("=")
            spelled.append(known.get(_plain(flag), flag) + equals + value)
        return super().parse_known_args(spelled, namespace)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As the library's; then the environment is set up as the flags say."""
        parsed = super().parse_args(args, namespace)
        _set_environment(parsed)
        return parsed

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """The flags by their names, with dashes between words and none before."""
        named = {_plain(flag): action for flag, action in self._option_string_actions.items()}
        return {flag[2:]: action for flag, action in named.items() if flag.startswith("--")}

    def error(self, message: str) -> NoReturn:
        """Raises UsageError with the mistake."""
        message = re.sub(r"//[^/\s@]*@", "//***@", message.removeprefix("argument "))  # a password in a URL
        raise UsageError(f"{one_line(message)} (see {self.prog} --help)")


def _set_environment(args: argparse.Namespace) -> None:
    """Set what CUDA and the hub's libraries read from the environment when they load."""
    if getattr(args, "gpu_devices", None) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = args.gpu_devices
    if getattr(args, "hf_cache_dir", None) is not None:
        folder = args.hf_cache_dir.absolute()
        os.environ["HF_HUB_CACHE"] = str(folder)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with the defaults behind the texts, where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS) or "default" in shown:
            return shown
        default = ", ".join(action.default) if isinstance(action.default, list) else "%(default)s"
        return f"{shown} (default: {default})"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        shown = super()._format_args(action, default_metavar)
        return shown.partition(" ")[0] + " …" if action.nargs == "+" else shown


def _plain(flag: str) -> str:
    return flag.replace("_", "-") if flag.startswith("--") else flag


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's `main` and exit with its code; errors that the user can fix are one line."""
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without ± gets ?, not a traceback
            stream.reconfigure(errors="replace")
    try:
        code = exit_code(main)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # whatever read our output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    raise SystemExit(code)


def exit_code(main: Callable[[], int]) -> int:
    """What `main` returns, or the exit code for an error that the user can fix, printed in one line."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"error: {one_line(error, 2000)}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "smmile":  # a defect of ours
            raise
        activate = f"source {shown_path(_SUITE / '.venv' / 'bin' / 'activate')}"
        print(
            f"error: this Python lacks the package {one_line(error.name)}; "
            f"run `{activate}` (first `make setup` in the suite's folder, if you have not yet)",
            file=sys.stderr,
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        what = error.filename or type(error).__name__
        print(f"error: {one_line(what)}: {error.strerror or one_line(error)}", file=sys.stderr)
    return EXIT_USAGE


def worst_code(codes: Iterable[int]) -> int:
    """The exit code of several runs."""
    found = set(codes)
    return next((code for code in (EXIT_USAGE, EXIT_SOME_ERRORS) if code in found), EXIT_OK)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def add_dataset_flags(parser: Parser, *, takes_several: bool = False) -> None:
    """The flags that say which problems a script works on."""
    group = parser.add_argument_group("data set")
    group.add_argument(
        "--dataset",
        **(several if takes_several else any_case)("smmile", "augmented", "demo"),
        help="augmented: SMMILE++; demo: the small built-in set (default: smmile)",
    )
    group.add_argument(
        "--augmented",
        nargs="?",
        const="augmented",
        **any_case("augmented"),
        help="old spelling of --dataset augmented",
    )
    group.add_argument(
        "--dataset-path",
        type=Path,
        metavar="DIR",
        help="read the rows from this folder: images with a metadata.csv or .jsonl, parquet files, or "
        "saved with save_to_disk (default: the hub)",
    )
    group.add_argument(
        "--dataset-id",
        metavar="ID",
        help="another data set on the hub (default: smmile/SMMILE, or smmile/SMMILE-plusplus)",
    )
    group.add_argument(
        "--dataset-revision",
        metavar="REV",
        help="commit, tag or branch of the hub's data set (default: main)",
    )
    group.add_argument(
        "--hf_cache_dir",
        type=Path,
        metavar="DIR",
        help="cache for files from the hub (default: the hub library's)",
    )
    group.add_argument(
        "--image-dir",
        type=Path,
        metavar="DIR",
        help="images that the data set lacks (default: ../missing_images)",
    )
    group.add_argument(
        "--max-image-pixels",
        type=positive,
        default=MAX_PIXELS,
        metavar="N",
        help="skip problems with an image of more pixels",
    )


def dataset_name(args: argparse.Namespace) -> DatasetName:
    """Which set the flags speak of."""
    named: DatasetName = args.dataset or args.augmented or "smmile"
    return named


def dataset_source(args: argparse.Namespace) -> DatasetSource:
    """The data set that the flags name. Raises UsageError where they contradict each other."""
    from smmile.data.dataset import DatasetSource

    named = {
        f"--dataset {args.dataset}": args.dataset == "demo"
        or (args.augmented and args.dataset == "smmile"),
        "--dataset-path": args.dataset_path is not None,
        "--dataset-id": args.dataset_id is not None,
    }
    given = [flag for flag, present in named.items() if present]
    given += ["--augmented"] if args.augmented and args.dataset in ("smmile", "demo") else []
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} name two data sets; give one of them")
    if args.dataset_revision is not None and given and given[0] != "--dataset-id":
        raise UsageError(f"--dataset-revision is one of the hub's; it does not go with {given[0]}")
    return DatasetSource(
        name=dataset_name(args),
        path=args.dataset_path,
        hub_id=args.dataset_id,
        revision=args.dataset_revision,
        image_dir=args.image_dir or _SUITE / "missing_images",
        max_pixels=args.max_image_pixels,
    )


def given_dataset_source(args: argparse.Namespace) -> DatasetSource | None:
    """The data set that the flags name; None where there are no such flags. Raises as `dataset_source`."""
    given = (args.dataset, args.augmented, args.dataset_path, args.dataset_id, args.dataset_revision)
    return None if given == (None,) * len(given) else dataset_source(args)


def add_inference_flags(
    parser: Parser, *, task_format: str = "open", max_new_tokens: int | None = 512
) -> None:
    """The flags of every inference script; `task_format` and `max_new_tokens` are the script's defaults."""
    parser.add_argument(
        "--inference_mode",
        **several("ICL", "0-shot"),
        default=["ICL"],
        help="with in-context examples, the query alone, or both; a run for each value",
    )
    parser.add_argument(
        "--task_format",
        **several("open", "mcqa"),
        default=[task_format],
        help="open-ended, multiple choice, or both",
    )
    add_dataset_flags(parser, takes_several=True)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="folder for results (default: ../results, ../results_augmented for SMMILE++, "
        "../results_demo for the demo)",
    )
    group.add_argument(
        "--limit", type=positive, metavar="N", help="run the first N problems (default: all)"
    )
    group.add_argument(
        "--problem",
        action="append",
        default=[],
        metavar="ID",
        help="run only this problem (repeatable; default: all)",
    )
    group.add_argument("--seed", type=seed, default=42, metavar="N", help="seed of every random choice")
    group.add_argument(
        "--repeat",
        type=positive,
        default=1,
        metavar="N",
        help="which of several repeats: 2 adds 1 to the seed (but of options), repeat-2 to the file's name",
    )
    group.add_argument(
        "--max_new_tokens",
        type=positive,
        default=max_new_tokens,
        metavar="N",
        help="maximum tokens per response" + ("" if max_new_tokens else " (default: no limit)"),
    )
    group.add_argument("--gpu-devices", type=_gpu_devices, metavar="0,1", help="GPUs to use (default: all)")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="write the requests to a file; send nothing",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="start the run again instead of continuing it"
    )
    group.add_argument("--no-share", action="store_true", help="do not deduplicate identical requests")
    group.add_argument(
        "--csv", action="store_true", help="also write a CSV file with the published columns"
    )
    add_csv_safe_flag(group, "as --csv")

    _add_perturbation_flags(parser)


def add_csv_safe_flag(group: argparse._ActionsContainer, what: str) -> None:
    """The flag for a CSV file that a spreadsheet can open."""
    group.add_argument(
        "--csv-safe", action="store_true", help=f"{what}, with ' before cells that would be formulas"
    )


def _add_perturbation_flags(parser: Parser) -> None:
    """The flags of the table of perturbations; all are None or False by default."""
    group = parser.add_argument_group("perturbations", "changes to every problem, applied in this order")
    for flag in (flag for kind in KINDS for flag in kind.flags):
        shown = flag.help if flag.default is None else f"{flag.help} (default: {flag.default})"
        if flag.choices:
            group.add_argument(flag.spelled, **any_case(*flag.choices), help=shown)
        elif flag.minimum is not None:
            number = positive if flag.minimum else _not_negative
            group.add_argument(flag.spelled, type=number, metavar="N", help=shown)
        else:
            group.add_argument(flag.spelled, action="store_true", help=shown)


def run_seed(args: argparse.Namespace) -> int:
    """The seed of a run's draws, another for each repeat; only options have `args.seed` itself."""
    return int((args.seed + args.repeat - 1) % 2**32)


def perturbations(args: argparse.Namespace) -> tuple[Perturbation, ...]:
    """The perturbations that the flags specify. Raises UsageError for flags that do not go together."""
    return perturbations_of(vars(args), args.inference_mode, args.task_format)


def add_local_model_flags(parser: Parser) -> None:
    """The flags of scripts whose models run on this machine, or on a server."""
    parser.add_argument(
        "--name", metavar="NAME", help="name of the run in file names (default: the model's)"
    )
    group = parser.add_argument_group("model on this machine")
    group.add_argument(
        "--model-path",
        type=Path,
        metavar="DIR",
        help="load the checkpoint from this folder (default: the hub)",
    )
    group.add_argument(
        "--batch-size",
        type=_batch_size,
        default="auto",
        metavar="N|auto",
        help="conversations per batch; auto grows to what fits in memory",
    )
    group.add_argument(
        "--dtype",
        **any_case("bfloat16", "float16", "float32"),
        help="data type of the weights (default: the published one; float32 on a CPU)",
    )
    group.add_argument(
        "--attn",
        type=_attention,
        default="auto",
        metavar="NAME",
        help="attention implementation: auto, flash_attention_2, flash_attention_3, sdpa, eager or a hub "
        "kernel such as kernels-community/flash-attn3; auto uses flash attention 2 if installed",
    )
    group.add_argument(
        "--quantization",
        **any_case("bnb-8bit", "bnb-4bit", "torchao-int8", "torchao-fp8"),
        help="quantize the weights while loading (default: as stored)",
    )
    group.add_argument(
        "--adapter", type=_adapter, metavar="ID|DIR", help="put this LoRA adapter on top (default: none)"
    )
    group.add_argument(
        "--chat-template",
        type=_chat_template,
        metavar="NAME|FILE",
        help="one of the checkpoint's named chat templates, or a Jinja file (default: its default)",
    )
    for flag, what in (("--min-pixels", "enlarge images below"), ("--max-pixels", "shrink images above")):
        group.add_argument(
            flag, type=positive, metavar="N", help=f"{what} N pixels (default: the checkpoint's own)"
        )
    _add_engine_flags(parser)
    _add_decoding_flags(parser)
    group = parser.add_argument_group("model on a server")
    group.add_argument(
        "--server",
        "--base-url",
        type=not_empty,
        metavar="URL",
        help="send requests to this OpenAI-compatible server; load no weights",
    )
    group.add_argument(
        "--served-model", metavar="NAME", help="model name on the server (default: the only model there)"
    )
    add_remote_flags(group)


def _add_engine_flags(parser: Parser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        **any_case("transformers", "vllm", "ray"),
        default="transformers",
        help="what runs the model: transformers; vllm, an installation of its own (docs/local-models.md); "
        "ray, which runs a copy in each of several workers (docs/scaling.md)",
    )
    group.add_argument(
        "--worker-engine",
        **any_case("transformers", "vllm"),
        default="transformers",
        help="Ray: what runs the model in a worker",
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="Ray: number of workers (default: as many as the GPUs allow; 1 without GPUs)",
    )
    group.add_argument(
        "--gpus-per-worker",
        type=_not_negative,
        metavar="G",
        help="Ray: GPUs of each worker (default: 1, or 0 without GPUs)",
    )
    group.add_argument(
        "--address",
        type=_cluster,
        metavar="HOST:PORT|auto",
        help="Ray: a running cluster; auto: the one on this machine (default: start one for this command)",
    )


def add_multi_image_flag(parser: Parser, default: str) -> None:
    """The flag for LLaVA-OneVision's tiles; `default` is shown, and args.multi_image is None without it."""
    parser.add_argument(
        "--multi-image",
        **any_case("tiled", "single"),
        help="LLaVA-OneVision: tile each of several images, as published, or send one tile each "
        f"(default: {default})",
    )


def _add_decoding_flags(parser: Parser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--generation-config",
        **any_case("checkpoint", "greedy"),
        help="checkpoint: its own generation config; greedy: without its sampling "
        "(default: as published; greedy in inference_hf.py)",
    )
    group.add_argument(
        "--temperature", type=_temperature, metavar="T", help="sample at this temperature; 0 is greedy"
    )
    group.add_argument(
        "--top-p",
        type=_top_p,
        metavar="P",
        help="sample from the most probable tokens that together have this probability",
    )
    group.add_argument(
        "--num-samples",
        type=positive,
        default=1,
        metavar="N",
        help="sampled responses to each problem, each sample a run of its own",
    )


def add_api_flags(parser: Parser, *, model: str) -> None:
    """The flags of scripts whose models are behind an API; `model` is the script's default."""
    group = parser.add_argument_group("model behind an API")
    group.add_argument(
        "--model", default=model, type=not_empty, metavar="NAME", help="model name at the service"
    )
    group.add_argument(
        "--name",
        type=not_empty,
        metavar="NAME",
        help="name of the run in file names (default: the published one, or the model's)",
    )
    group.add_argument(
        "--set",
        type=_field,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of every request, such as reasoning_effort=low; null removes it "
        "(repeatable; default: none)",
    )
    group.add_argument(
        "--base-url",
        type=not_empty,
        metavar="URL",
        help="address of the service (default: the client library's environment variable, or the provider)",
    )
    add_remote_flags(group)
    add_cost_flags(group)


def add_cost_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of scripts whose requests may cost money."""
    group.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="price table (default: smmile/backends/prices.json, which is dated)",
    )
    group.add_argument(
        "--max-cost",
        type=_dollars,
        metavar="DOLLARS",
        help="stop before the whole run costs more than this",
    )
    group.add_argument(
        "--batch", action="store_true", help="send batch jobs: half the price, results within 24 hours"
    )


def add_remote_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of scripts that send requests over a network."""
    group.add_argument(
        "--concurrency", type=positive, default=8, metavar="N", help="maximum requests in flight"
    )
    group.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="S", help="seconds until a response is complete"
    )
    group.add_argument(
        "--max-retries",
        type=_not_negative,
        default=10,
        metavar="N",
        help="maximum retries after a transient error",
    )


def output_folder(args: argparse.Namespace) -> Path:
    """The folder that a run's files go to."""
    if args.output_dir is not None:
        return Path(args.output_dir)
    folders = {"smmile": "results", "augmented": "results_augmented", "demo": "results_demo"}
    return _SUITE / folders[dataset_name(args)]


def add_scoring_flags(parser: Parser) -> None:
    """The flags of every scoring script. The models asked for are `args.models`, a list."""
    parser.add_argument(
        "results_dir",
        nargs="?",
        type=Path,
        action=_StoreGiven,
        default=_SUITE / "results",
        metavar="DIR",
        help="folder with result files (default: ../results)",
    )
    parser.add_argument(
        "--model",
        "--models",
        dest="models",
        nargs="+",
        action=_Models,
        default=[],
        metavar="NAME",
        help="only these models, named as in their files (default: all)",
    )
    parser.add_argument(
        "--inference-mode", **any_case("ICL", "0-shot"), help="only this mode (default: both)"
    )
    parser.add_argument("--perturbed", action="store_true", help="include perturbed runs")


def add_metric_flag(parser: Parser, metrics: Iterable[str], help_text: str, **options: Any) -> None:
    """The flag that chooses one of `metrics`, as `args.metric`; `options` are argparse's."""
    parser.add_argument(
        "--metric", "--eval_type", dest="metric", **any_case(*metrics), help=help_text, **options
    )


def add_choice_flag(parser: Parser) -> None:
    """The flag that says which choices are scored in multiple choice."""
    parser.add_argument(
        "--mcqa",
        **any_case("stored", "reread"),
        default="stored",
        help="multiple-choice answers as stored, or re-extracted from full responses",
    )


def add_look_flag(parser: Parser) -> None:
    """The flag that says what figures are for."""
    parser.add_argument(
        "--look",
        nargs="+",
        choices=("print", "light", "dark"),
        default=("print", "light", "dark"),
        help="figures for print (PDF), light or dark screens (default: all three)",
    )


def add_sort_flag(parser: Parser) -> None:
    """The flag that sorts a table."""
    parser.add_argument(
        "--sort", metavar="COLUMN", help='sort by this column, such as "accuracy" (default: by model)'
    )


class _StoreGiven(argparse.Action):
    """Stores a positional argument only if it is given, and keeps a value set earlier."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values is not self.default:
            setattr(namespace, self.dest, values)


class _Models(argparse.Action):
    """Stores names separated by blanks or commas; a folder after them is the results folder."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        *names, last = values
        if names and ("/" in last or Path(last).is_dir()):
            namespace.results_dir = Path(last)
        else:
            names.append(last)
        found = [name.strip() for text in names for name in text.split(",") if name.strip()]
        if not found:
            parser.error(f"argument {option_string}: it names no model")
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *found])


def one_of(*choices: str) -> Callable[[str], str]:
    """A flag's type: one of the `choices`, in upper or lower case."""
    by_lower = {choice.lower(): choice for choice in choices}

    def chosen(text: str) -> str:
        if text.lower() not in by_lower:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")
        return by_lower[text.lower()]

    return chosen


def any_case(*choices: str) -> dict[str, Any]:
    """The options of a flag that takes one of `choices`, in upper or lower case."""
    return {"type": one_of(*choices), "choices": choices}


def several(*choices: str) -> dict[str, Any]:
    """The options of a flag that takes one or more of `choices`, separated by blanks or commas."""
    return {"nargs": "+", "action": _Several, "const": choices, "metavar": f"{{{','.join(choices)}}}"}


class _Several(argparse.Action):
    """Stores values of the choices in `const`, each once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        texts = [text.strip() for value in values for text in value.split(",") if text.strip()]
        if not texts:
            parser.error(f"argument {option_string}: it is empty")
        try:
            setattr(namespace, self.dest, list(dict.fromkeys(map(one_of(*self.const), texts))))
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument {option_string}: {error}")


def shown_path(path: Path) -> str:
    """`path`, relative to the working directory where that is shorter."""
    relative = os.path.relpath(path)
    return one_line(relative if len(relative) < len(str(path)) else path)


def _matching(pattern: str, what: str, convert: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """A flag's type: a text that matches `pattern`, converted; `what` it is, for messages."""

    def converted(text: str) -> _Value:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return convert(text)

    return converted


positive = _matching(r"0*[1-9]\d{0,8}", "a whole number from 1", int)
_not_negative = _matching(r"\d{1,9}", "a whole number from 0", int)
_seconds = _matching(r"(?=.*[1-9])\d{1,6}(\.\d+)?", "a number of seconds above 0", float)
_dollars = _matching(r"\d{1,9}(\.\d+)?|\.\d+", "a number of dollars", float)
_cluster = _matching(r"auto|[\w.\[\]:-]+:\d{1,5}", "auto, or the HOST:PORT of a Ray cluster", str)
_gpu_devices = _matching(r"\d+(,\d+)*", "a list of device numbers such as 0,1", str)


def _attention(text: str) -> str:
    if re.fullmatch(r"kernels-community/[\w.-]+(@[\w.-]+)?(:\w+)?", text):
        return text
    try:
        return one_of("auto", "flash_attention_2", "flash_attention_3", "sdpa", "eager")(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor a kernel of kernels-community") from None


def _adapter(text: str) -> str | Path:
    folder = Path(text)
    if text and folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) or ".." in text:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a folder nor a hub id such as org/name")
    return text


def _chat_template(text: str) -> str | Path:
    if Path(text).is_file():
        return Path(text)
    if not re.fullmatch(r"[\w-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a file nor the name of a chat template")
    return text


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


def _temperature(text: str) -> float:
    value = _number(text)
    if value is None or value < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a temperature: a number above 0, or 0 for greedy"
        )
    if 0 < value < 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r} is too close to 0; use 0 for greedy decoding")
    return value


def _top_p(text: str) -> float:
    value = _number(text)
    if value is None or not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return value


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def points(text: str) -> float:
    """A flag's type: percentage points, between 0 and 100."""
    number = float(text)
    if not 0 < number < 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100")
    return number


def _field(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    not_to_be_set = ("model", "messages", "system", "stream", "n")
    if not equals or not re.fullmatch(r"\w+", name) or name in not_to_be_set:
        raise argparse.ArgumentTypeError(f"{text!r} does not set a field of a request, as temperature=0.7")
    if name in ("max_tokens", "max_completion_tokens", "num_predict"):
        raise argparse.ArgumentTypeError(f"{text!r} is what --max_new_tokens is for")
    try:
        parsed: object = json.loads(value)
    except ValueError:
        parsed = value
    try:
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither JSON nor text that can be sent") from None
    return name, parsed


def not_empty(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def seed(text: str) -> int:
    """A flag's value as a seed that every generator takes."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)
