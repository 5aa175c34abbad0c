"""Figures of the runs in a folder: ICL against 0-shot per model, and models by stratum."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from smmile import cli
from smmile.scoring.metrics import METRICS, ScoringOptions

EXAMPLE = "python plot_results.py ../results --metric llm --with-published"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    cli.add_scoring_flags(parser)
    cli.add_metric_flag(parser, METRICS, "only this metric (default: all)")
    cli.add_choice_flag(parser)
    parser.add_argument(
        "--with-published",
        action="store_true",
        help="also show the published scores of all models",
    )
    parser.add_argument("--strata", action="store_true", help="also a figure of each model's strata")
    parser.add_argument(
        "--look",
        nargs="+",
        choices=("print", "light", "dark"),
        default=("print", "light", "dark"),
        help="for print (PDF), light or dark screens (default: all three)",
    )
    parser.add_argument(
        "--format", choices=("png", "svg"), default="png", help="file format of figures for screens"
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder for figures (default: the results folder)"
    )
    args = parser.parse_args()

    from smmile.errors import UsageError, one_line
    from smmile.files import make_folder, write_whole
    from smmile.reporting.figures import (
        HeatMap,
        Plan,
        figure_files,
        heat_map,
        models_plan,
        named_strata_plans,
    )
    from smmile.reporting.published import published_scores, published_set
    from smmile.reporting.strata import run_key
    from smmile.reporting.strata_files import read_strata, strata_match
    from smmile.scoring.folder import read_scores
    from smmile.scoring.selection import Selection

    metrics = tuple(metric for metric in METRICS if args.metric in (None, metric))
    options = ScoringOptions(reextract=args.mcqa == "reread" and "mcqa" in metrics)
    everything = read_scores(args.results_dir, metrics=metrics, options=options)
    selection = Selection(tuple(args.models), args.inference_mode, args.perturbed)
    found = everything.select(selection.resolved(everything.names, args.results_dir))
    for message in found.messages:
        print(message, file=sys.stderr)
    scores, broken = found.scores, [one.reason for one in found.unscored]
    if not scores and not broken:
        what = f"with --metric {args.metric}" if args.metric else "but perturbed ones (see --perturbed)"
        raise UsageError(f"{cli.shown_path(args.results_dir)} has no scored runs {what}")

    plans: dict[str, Plan | HeatMap] = {}
    if scores:
        published = (
            published_scores(published_set(scores), args.inference_mode) if args.with_published else []
        )
        plans["icl"] = models_plan(scores, published, _chance_level(args.results_dir))
    for metric in metrics:
        file = args.results_dir / f"model_stratification_{metric}.json"
        try:
            strata = read_strata(file) if file.exists() else {}
        except UsageError as error:
            broken.append(str(error))
            print(f"skipped: {error}", file=sys.stderr)
            continue
        for run in scores:
            key = run_key(run.name)
            if run.metric == metric and key in strata and not strata_match(strata[key], run):
                del strata[key]
                print(
                    f"warning: the strata of {one_line(key)} in {file.name} are of other answers and "
                    "are left out; run stratify.py again",
                    file=sys.stderr,
                )
        if by_stratum := heat_map(metric, strata, scores):
            plans[f"models_by_stratum_{metric}"] = by_stratum
        if args.strata:
            plans |= named_strata_plans(metric, strata, scores)

    folder = args.output_dir or args.results_dir
    make_folder(folder)
    end = "\r" if sys.stderr.isatty() else "\n"
    total = len(plans) * len(set(args.look))
    for number, (file_name, content) in enumerate(figure_files(plans, args.look, args.format), start=1):
        print(f"figure {number} of {total}", end=end, file=sys.stderr, flush=True)
        write_whole(folder / file_name, content, durable=False)
        print(cli.shown_path(folder / file_name))
    return cli.EXIT_SOME_ERRORS if broken else cli.EXIT_OK


def _chance_level(folder: Path) -> float | None:
    """The accuracy of guessing among the options in per cent, if evaluate_MCQA.py has written it."""
    import msgspec

    from smmile.scoring.evaluation import evaluation_files
    from smmile.scoring.metrics import METRICS

    for file in evaluation_files(folder, METRICS["mcqa"]).values():
        with contextlib.suppress(OSError, ValueError, RecursionError):
            evaluation = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
            if isinstance(level := evaluation.get("chance_level"), float) and 0 <= level <= 100:
                return level
    return None


if __name__ == "__main__":
    cli.run_script(main)
