"""Measure the errors in the published runs on the published files and write docs/errata.md."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "inference_and_evaluation"))

from smmile import cli  # noqa: E402

EXAMPLE = "python tools/published_errata.py --published ../smmile/results"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--published",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder `results` of a checkout of the public repository (repeatable)",
    )
    parser.add_argument(
        "--published-augmented",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="its folder `results_augmented` (default: described as in the protocol; repeatable)",
    )
    parser.add_argument(
        "--augmented-path",
        type=Path,
        metavar="DIR",
        help="read the rows of SMMILE++ from this folder (default: the hub)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "docs" / "errata.md",
        metavar="FILE",
        help="the page (default: docs/errata.md)",
    )
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    from errata_measures import errata_page, read_published
    from smmile.data.dataset import DatasetSource, load_outlines
    from smmile.errors import UsageError
    from smmile.files import write_whole
    from smmile.reporting.published import PublishedSet

    if cli.dataset_name(args) != "smmile":
        raise UsageError(
            "--published is on SMMILE, so --dataset is not; name SMMILE++ by --published-augmented"
        )
    sources: list[tuple[PublishedSet, list[Path], DatasetSource]] = [
        ("SMMILE", args.published, cli.dataset_source(args))
    ]
    if args.published_augmented:
        augmented = DatasetSource("augmented", path=args.augmented_path)
        sources.append(("SMMILE++", args.published_augmented, augmented))
    published = [
        read_published(folders, data_set, source.label, load_outlines(source))
        for data_set, folders, source in sources
    ]
    flags = {
        "--published": len(args.published),
        "--dataset-path": bool(args.dataset_path),
        "--published-augmented": len(args.published_augmented),
        "--augmented-path": bool(args.augmented_path),
    }
    given = [f"{flag} DIR" for flag, count in flags.items() for _ in range(count)]
    command = " ".join(["tools/published_errata.py", *given])
    write_whole(args.output, errata_page(published, command).encode())
    print(cli.shown_path(args.output))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
