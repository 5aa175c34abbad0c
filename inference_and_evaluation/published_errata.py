"""What went wrong in the published runs: measures it on the published files and writes docs/errata.md."""

from __future__ import annotations

from pathlib import Path

from smmile import cli

EXAMPLE = "python published_errata.py --published ../../smmile/results --output ../docs/errata.md"


def main() -> int:
    parser = cli.Parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--published",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder `results` of a checkout of the public repository",
    )
    parser.add_argument(
        "--published-augmented",
        type=Path,
        metavar="DIR",
        help="its folder `results_augmented` (default: quote the protocol's figures for SMMILE++)",
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
        default=Path(__file__).resolve().parents[1] / "docs" / "errata.md",
        metavar="FILE",
        help="file to write (default: ../docs/errata.md)",
    )
    cli.add_dataset_flags(parser)
    args = parser.parse_args()

    from smmile.data.dataset import DatasetSource, load_outlines
    from smmile.errors import UsageError
    from smmile.files import write_whole
    from smmile.reporting.errata import errata_page, read_published
    from smmile.reporting.published import PublishedSet

    if cli.dataset_name(args) != "smmile":
        raise UsageError(
            "--published is on SMMILE, so --dataset is not; name SMMILE++ by --published-augmented"
        )
    sources: list[tuple[PublishedSet, Path, DatasetSource]] = [
        ("SMMILE", args.published, cli.dataset_source(args))
    ]
    if args.published_augmented:
        augmented = DatasetSource("augmented", path=args.augmented_path)
        sources.append(("SMMILE++", args.published_augmented, augmented))
    published = [
        read_published(folder, data_set, source.label, load_outlines(source))
        for data_set, folder, source in sources
    ]
    flags = {
        "--published": args.published,
        "--dataset-path": args.dataset_path,
        "--published-augmented": args.published_augmented,
        "--augmented-path": args.augmented_path,
    }
    command = " ".join(["published_errata.py", *(f"{flag} DIR" for flag, given in flags.items() if given)])
    write_whole(args.output, errata_page(published, command).encode())
    print(cli.shown_path(args.output))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run_script(main)
