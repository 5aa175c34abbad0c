"""What is wrong with the rows of a data set, row by row, and what a run would skip."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from smmile.backends.remote import anthropic_messages, openai_services
from smmile.data.dataset import DatasetSource
from smmile.data.images import StoredImage, open_image
from smmile.data.rows import Fault, InspectedRow, Row, find_faults, group_rows, inspect_rows
from smmile.errors import one_line, pluralize
from smmile.prompting.choice import twin_key

_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP")
_SERVICES = {"Anthropic": anthropic_messages.IMAGE_RULES, "OpenAI": openai_services.IMAGE_RULES}
_UNNAMED = Fault("problem_id", "is empty, so that no run starts", "fill it in", "")
_ALONE = Fault(
    "problem_id",
    "has no other row, so there are no examples for ICL",
    "give its examples the same problem_id (0-shot runs use it as it is)",
    "",
)


def check_report(rows: Sequence[Row], *, source: DatasetSource, places: int | None) -> tuple[str, bool]:
    """The report for a terminal of 80 columns, and whether a run would skip nothing.

    A warning is what is unusual, but sent as it is; up to so many `places` are listed (None: all). Raises
    UsageError if there are no rows.
    """
    inspected = list(inspect_rows(rows, source.image_dir, source.max_pixels))
    named = [member for member in inspected if member.row.problem_id]
    problems = group_rows(named, source.label) if named or not rows else {}
    skipped: list[str] = []
    for unnamed in (member for member in inspected if not member.row.problem_id):
        faults = [(unnamed, _UNNAMED), *find_faults([unnamed])]
        skipped += [f"  {_fault_line(member.row, fault)}" for member, fault in faults]
    warnings: dict[str, list[str]] = {}
    lost, bad = len(rows) - len(named), 0
    unread: set[str] = set()
    for problem_id, members in problems.items():
        faults = list(find_faults(members)) or [(members[0], _ALONE)] * (len(members) == 1)
        if faults:
            numbers = ", ".join(str(member.row.number) for member in members)
            skipped.append(f"  problem {one_line(problem_id)} ({members[0].row.unit} {numbers})")
            faults.sort(key=lambda found: found[0].row.number)
            skipped += [f"    {_fault_line(member.row, fault)}" for member, fault in faults]
            lost, bad = lost + len(members), bad + 1
            if faults[0][1] is not _ALONE:
                unread.add(problem_id)
        else:
            members.sort(key=lambda member: int(float(str(member.row.order))))
            for kind, where in _warnings(one_line(problem_id, 60), members):
                warnings.setdefault(kind, []).append(where)
    total = f"{pluralize(len(problems), 'problem')}, {pluralize(len(rows), 'row')}"
    lines = [f"Data set {one_line(source.label)}: {total}", ""]
    lines += ["A run skips:", *skipped, ""] if skipped else []
    lines += ["Warnings (a run sends these as they are):"] if warnings else []
    for kind, found in warnings.items():
        more = f" and {len(found) - places} more (--all)" if places and len(found) > places else ""
        lines.append(f"  {kind}: {', '.join(found[:places])}{more}")
    lines += [""] if warnings else []
    some = f"{lost} of the rows, in {bad} of the problems"
    lines += [
        *_summary({key: problems[key] for key in problems if key not in unread}),
        "",
        f"A run skips {some if skipped else 'no row'}.",
    ]
    return "\n".join(map(_wrapped, lines)) + "\n", not skipped


def _fault_line(row: Row, fault: Fault) -> str:
    return f"{row.place}, {fault.column}: {one_line(fault.what)}; {one_line(fault.fix, 600)}"


def _warnings(problem_id: str, members: Sequence[InspectedRow]) -> Iterator[tuple[str, str]]:
    """What is unusual about a problem that can be run, and where; the query is the last of `members`."""
    *examples, query = members
    answers = [str(member.row.answer) for member in members]
    for member, answer in zip(members, answers, strict=True):
        if answer != answer.strip():
            yield "answers with blanks at an end, sent and compared as they are", member.row.place
        if member is not query and member.image == query.image:
            yield "examples that show the query's image", member.row.place
        for kind in _image_warnings(member.image, len(members)) if member.image else ():
            yield kind, member.row.place
    if len(set(map(twin_key, answers))) < len(set(answers)):
        yield "problems with options that differ only in case, blanks or punctuation", problem_id
    if twin_key(answers[-1]) not in map(twin_key, answers[:-1]):
        yield "problems whose query has an answer that no example has", problem_id
    if any(example.row.flags != query.row.flags for example in examples):
        yield "problems whose rows differ in their flags (the query's count)", problem_id
    if problem_id != problem_id.strip():
        yield "problem ids with blanks at an end", f"'{problem_id}'"


def _image_warnings(image: StoredImage, images: int) -> Iterator[str]:
    """What services do to one of the `images` of a problem."""
    opened = open_image(image.stored)
    if opened.format not in _FORMATS:
        yield f"images in the format {one_line(opened.format)}, which services get as PNG"
    if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
        yield "images with several frames, of which models see the first"
    for service, rules in _SERVICES.items():
        side = rules.max_side_of_many if rules.many and images > rules.many else rules.max_side
        too_long = rules.max_image_bytes and -(-image.size // 3) * 4 > rules.max_image_bytes
        if too_long or (side and max(opened.size) > side):
            yield f"images over the limits of {service}, which gets them scaled down"


def _summary(problems: Mapping[str, Sequence[InspectedRow]]) -> Iterator[str]:
    if examples := [len(members) - 1 for members in problems.values()]:
        median = statistics.median(examples)
        yield f"  examples per problem: {min(examples)} to {max(examples)}, median {median:g}"
    names = [members[-1].row.flags.get("speciality") for members in problems.values()]
    known = [name for name in names if name not in (None, "", "None")]
    without = [f"without: {len(names) - len(known)}"] if len(known) < len(names) else []
    yield f"  specialities: {', '.join([*filter(None, [_counts(known)]), *without])}"
    found = [member for members in problems.values() for member in members]
    images = {one.image.sha256: one.image for one in found if one.image and not one.image_defect}.values()
    if images:
        opened = [open_image(image.stored) for image in images]
        first, *_, last = sorted((one.size for one in opened), key=lambda size: size[0] * size[1]) * 2
        size = f"{sum(image.size for image in images) / 1e6:.1f} MB, {first[0]} x {first[1]}"
        size += f" to {last[0]} x {last[1]} pixels"
        yield f"  images: {len(images)} different, {size}; {_counts(one.format for one in opened)}"


def _counts(names: Iterable[object]) -> str:
    return ", ".join(f"{one_line(name, 60)} {number}" for name, number in Counter(names).most_common())


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, 79, subsequent_indent=indent, break_on_hyphens=False)
