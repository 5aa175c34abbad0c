"""Extracts the chosen option from a multiple-choice response.

If text follows the reasoning in `<think>`, it alone counts. The first passage with a choice decides:

1. Declarations, the last first: the content of `<answer>` (closed or not) or `\\boxed{}`, or what follows
   "the answer is", "Diagnosis:" and the like, but not after "if ...". An answer tag without a choice ends
   the search, as does a response of several sentences that is truncated in the middle of one.
2. Lines that begin with a letter ("B.", "B) text"), if all of them agree.
3. Concluding sentences ("Therefore ..."), the last first.
4. The whole response, if it has at most three sentences.

In a passage, letters take precedence over text; what it denies ("not", "rather than") is no choice.

- A letter counts if it comes first and is set off ("B", "b.", "(B) text", "B because"), or if it is the
  only one marked as an option ("option B", "(B)", "B. text" with the text of any option).
- A text counts if it is an option, or if its sentences fit exactly one. A sentence fits an option if it
  states and denies the words that the option, or one of its clauses, states and denies, in any order. An
  option inside a longer one does not count, nor does one that is denied anywhere. Sentences that express
  doubt ("may") or general knowledge ("typically"), or list three options, fit none.
- Otherwise a leading yes or no counts. If every option is a yes or a no, sentences without doubt mean no if
  they only deny, and yes if they only state a finding.

Options that differ only in case, white space or punctuation are twins. A text that fits one chooses all.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

from smmile.prompting.options import Options

_MAX_DECLARATIONS = 100  # Only the last declarations are examined: more than any real response has.
_FEW_SENTENCES = 3  # In longer passages, single words are too often prose.
_CONTEXT = 300  # Characters examined around a match, so that long responses take linear time.

# Markup for bold, code and formulas, and LaTeX commands for fonts.
_MARKUP = re.compile(r"[*`$]+|\\(?:text|math)\w*")
_TAG = re.compile(r"</?\s*(?:think|answer)\s*>", re.IGNORECASE)
# Not after "B." or the "E." of "E. coli".
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)\s+|\n+")
_LINE_END = re.compile(r"\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")

# The choice follows the match. The words in between must not negate it.
_DECLARED = re.compile(
    r"(?P<tag><\s*answer\s*>)|(?P<box>\\boxed\s*\{)|(?<!to )(?<!incorrect )(?<!wrong )\b(?:answer|diagnosis"
    r"|(?:my|correct|best|right|final|likely|appropriate)\s+(?:option|choice|letter))\b"
    r"(?P<words>[^.:;=!?\n<>]{0,80}?)(?:\b(?:is|be)\b:?|[:=])",
    re.IGNORECASE,
)
# Makes what is declared after it conditional, but not in "if I had to choose".
_CONDITION = re.compile(r"\b(?:if|unless|whether)\b(?! (?:I|we) )", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|in conclusion|in summary|overall|based on|diagnosis|most likely"
    r"|most consistent|choose|select|go with)\b",
    re.IGNORECASE,
)

# A letter at the beginning, after words such as "most likely option (", and what must follow to exclude
# "A 45-year-old", "B cells", "A or B".
_FIRST_LETTER = re.compile(
    r"(?i:[\s\"'“‘(\[{>•-]*(?:(?:the|most|likely|probably|correct|answer|option|letter|choice|thus|therefore"
    r"|hence|so|it|is|must be|i['’]d say)\b[\s:,\"'“‘(\[{]*){0,5})([A-Z]{1,2})"
    r"(?=\s*(?:[])}.:;!?\"'”’](?!\w)|\((?!or\b)|,\s+(?!or\b)[a-z]|[-–—]\W|$)|\s*\n"
    r"|\s+(?:because|since|as|for|which|with|based|due|given|is|are|was|but|in)\b)"
)
_MARKED_LETTER = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer|choose|select|go with)[ :\"'“(\[]{1,4}([A-Z]{1,2})\b"
    r"(?!['’-]\w)|\(([A-Z]{1,2})\)|(?<![\w-])([A-Z]{1,2})[.):]\s+(?=\w)"
)

# A clause denies what follows one of these words, or all that it says if the word follows "is".
_NEGATION = re.compile(
    r"(?P<all>\b(?:is|are|was|were|be|seems?|appears?)\s+)?\b(?:not?|none|never|neither|nor|cannot|\w+n['’]t"
    r"|(?:do|does|did|is|are|was)nt|without|incorrect|wrong|exclude[ds]?|except|rather than|instead of"
    r"|opposed to|versus|unlike(?:ly)?|less likely|absent|absence|rule[ds]? out)\b",
    re.IGNORECASE,
)
_CLAUSE_BREAK = re.compile(
    r"(?=\b(?:but|however|although|though|while|whereas|so|therefore|thus|hence|which|because)\b"
    r"|, \w+ing\b)|(?<=[.;!?\n])(?=\s)",
    re.IGNORECASE,
)

# What makes options differ that are no twins: letters, digits, signs, and marks within and before numbers.
_TWIN_PARTS = re.compile(r"[^\W_]|[+<>=±≤≥]|(?<=\d)\W+(?=\d)|(?<!\w)[.-](?=\d)")

# Sentences with these state nothing about the image: doubts, questions, talk about the task, and
# general knowledge.
_DOUBT = re.compile(
    r"\b(?:if|whether|either|cannot|could|may|might|would|should|possibl[ey]|perhaps|(?:un)?clear|difficult"
    r"|or absence|determine|assess|looking for|differentiates?|question|options|option [A-Z]|provided"
    r"|information|know|idea)\b|\?\s*$",
    re.IGNORECASE,
)
_GENERAL = re.compile(
    r"\b(?:can|such as|including|typically|often|usually|characterized|consists?|refers|other hand)\b",
    re.IGNORECASE,
)
# What follows a main clause.
_RELATIVE = re.compile(r",? (?:which|where|who|without|with no|as indicated|as there)\b")

# The parts of an option.
_CLAUSE_END = re.compile(r"[.,;:()]| - |(?:suggestive|indicative|consistent) (?:of|with)")
# The patterns and words below apply to the output of `_words`.
# Responses spell out numbers that options give as digits.
_NUMBERS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"}
_FUNCTION_WORDS = re.compile(
    r"and|as|at|be|by|in|is|are|it|on|or|this|there|to|with|so|up|us|he|me|we|my|do|go|if|am|but"
)
# What may stand between a negation and what it denies: "no tension pneumothorax" denies tension alone.
_FILLERS = re.compile(r"show|have|see|any|evidence|sign|visible|obvious|apparent|definite|present")
# States a finding, not just the type of image.
_FINDING = re.compile(
    r"\b(?:shows?|showing|reveals?|demonstrates?|indicates?|there (?:is|are)|consistent with|present)\b"
    r"(?! (?:\w+ ){0,2}(?:image|scan|xray|radiograph|ct|mri|computed"
    r"|magnetic|ultrasound|view|slide|section|photo\w*|picture|ecg|eeg|normal)\b)"
)


def read_choice(response: str, options: Options) -> str | None:
    """The letter of the option that `response` chooses by the rules above, or None."""
    letters = read_choices(response, options)
    return letters[0] if len(letters) == 1 else None


def read_choices(response: str, options: Options) -> tuple[str, ...]:
    """The letters of the option that `response` chooses: several for a text that fits twins."""
    return _decide(response, options)[0]


def deciding_passage(response: str, options: Options) -> slice | None:
    """The part of `response` that decides which option it chooses; None without a choice."""
    letters, part = _decide(response, options)
    if not letters:
        return None
    plain = _MARKUP.sub("", response)
    text = _after_thoughts(plain)
    passage = text[part]
    start = len(plain) - len(text) + part.start + len(passage) - len(passage.lstrip())
    last = start + len(passage.strip()) - 1
    return slice(_index_before(_MARKUP, 0, response, start), _index_before(_MARKUP, 0, response, last) + 1)


def _index_before(pattern: re.Pattern[str], length: int, text: str, index: int) -> int:
    """The index in `text` of the character at `index` where each match is replaced by `length` ones."""
    for match in pattern.finditer(text):
        if match.start() + length > index:
            break
        index += len(match[0]) - length
    return index


def _after_thoughts(text: str) -> str:
    """What follows the reasoning in `text`, or all of it if nothing does."""
    after = text.rpartition("</think>")[2]
    return after if _TAG.sub("", after).strip() else text


def _decide(response: str, options: Options) -> tuple[tuple[str, ...], slice]:
    """The letters chosen, and what decides: a part of what follows the reasoning, without markup."""
    text = _after_thoughts(_MARKUP.sub("", response))
    reader = _Reader(options.texts)
    for start, passage, is_tag in _declared(text):
        choice = reader.choice(passage)
        if choice or (is_tag and passage.strip()):
            return choice, slice(start, start + len(passage))
    untagged = _TAG.sub("\n", text)
    rest = untagged.strip()
    before = len(untagged) - len(untagged.lstrip())

    def part(start: int, passage: str) -> slice:
        ends = (before + start, before + start + len(passage))
        return slice(*(_index_before(_TAG, 1, text, index) for index in ends))

    sentences = _pieces(_SENTENCE_END, rest)
    _, last = sentences[-1]
    if len(sentences) > 1 and len(last) > 25 and re.search(r"[\w,(-]$", last):
        return (), slice(0)
    lines = {
        letter: (start, line)
        for start, line in _pieces(_LINE_END, rest)
        if (letter := reader.first_letter(line))
    }
    if len(lines) == 1:
        [(letter, line)] = lines.items()
        return (letter,), part(*line)
    passages = [one for one in reversed(sentences) if _CONCLUDES.search(one[1])]
    if len(sentences) <= _FEW_SENTENCES and not lines:
        passages.append((0, rest))
    choices = ((choice, part(*one)) for one in passages if (choice := reader.choice(one[1])))
    return next(choices, ((), slice(0)))


def _pieces(end: re.Pattern[str], text: str) -> list[tuple[int, str]]:
    """What `end` splits `text` into, each with its start."""
    ends = [*end.finditer(text)]
    starts = [0, *(match.end() for match in ends)]
    stops = [*(match.start() for match in ends), len(text)]
    return [(start, text[start:stop]) for start, stop in zip(starts, stops, strict=True)]


def _declared(text: str) -> Iterator[tuple[int, str, bool]]:
    """Declared choices, the last first, with their starts, and whether each is the content of a tag."""
    end = len(text)
    for match in reversed(list(_DECLARED.finditer(text))[-_MAX_DECLARATIONS:]):
        if match["tag"]:
            yield match.end(), _TAG.split(text[match.end() : end], maxsplit=1)[0], True
            end = match.start()
            continue
        before = _SENTENCE_END.split(text[max(0, match.start() - _CONTEXT) : match.start()])[-1]
        if _NEGATION.search(match["words"] or "") or _CONDITION.search(before):
            continue
        following = text[match.end() : match.end() + _CONTEXT]
        passage = _TAG.split(following.lstrip())[0]
        passage = passage.partition("}")[0] if match["box"] else _SENTENCE_END.split(passage)[0]
        yield match.end() + len(following) - len(following.lstrip()), passage, False


class _Reader:
    """Finds the options of one problem in a passage, by letter or by text.

    An option's name is its text normalized by `_words`; options with equal names share it.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.letters_of: dict[str, list[str]] = defaultdict(list)
        for letter, text in texts.items():
            if name := _words(text) or text.strip():
                self.letters_of[name].append(letter)

    def choice(self, passage: str) -> tuple[str, ...]:
        """The letters of the option that `passage` chooses, by letter or else by text."""
        if re.fullmatch(r"\W*[a-z]\W*", passage):
            passage = passage.upper()
        marked = self._marked_letters(passage)
        letter = self.first_letter(passage) or (marked.pop() if len(marked) == 1 else None)
        return (letter,) if letter else () if len(marked) > 2 else self.text(passage)

    def first_letter(self, passage: str) -> str | None:
        """The letter that `passage` begins with, if it is set off from what follows."""
        match = _FIRST_LETTER.match(_stated_and_denied(passage[:_CONTEXT])[0])
        if not match or match[1] not in self.texts:
            return None
        marked = self._marked_letters(passage)
        if match[1] in marked and len(marked) > 1:  # "A) yes B) no"
            return None
        options = tuple(text.strip() for text in self.texts.values() if len(text.strip()) > 2)
        return None if passage[match.start(1) :].startswith(options) else match[1]  # "E. coli"

    def _marked_letters(self, passage: str) -> set[str]:
        """The letters that `passage` marks as options and does not deny."""
        stated = _stated_and_denied(passage)[0]
        names = tuple(f"{name} " for name in self.letters_of)
        return {
            letter
            for match in _MARKED_LETTER.finditer(stated)
            if (letter := match[1] or match[2] or match[3]) in self.texts
            if not match[3] or f"{_words(stated[match.end() :][:_CONTEXT])} ".startswith(names)
        }

    def text(self, passage: str) -> tuple[str, ...]:
        """The letters of the only option, or of the only twins, that the words of `passage` fit."""
        names = {_words(passage) or passage.strip()} & set(self.letters_of)
        if not names:
            statements = [*itertools.filterfalse(self._lists_options, _statements(passage))]
            names = self._fitting(statements)
            if len(names) != 1:
                names = self._fitting([" . ".join(statements)])
            names = names or self._yes_or_no(passage, statements)
        letters = tuple(self.letters_of[names.pop()]) if len(names) == 1 else ()
        return letters if len({twin_key(self.texts[letter]) for letter in letters}) == 1 else ()

    def _fitting(self, statements: list[str]) -> set[str]:
        """The names of options that a statement fits and none denies."""
        fits: list[tuple[set[str], str]] = []
        denied = set()
        for statement, (form, name) in itertools.product(map(_Signed, statements), self._forms):
            if statement.holds(form) and (name in statement.text or all(map(_is_long, form))):
                fits.append((form, name))
            if statement.holds({word[1:] if word[0] == "-" else f"-{word}" for word in form}):
                denied.add(name)
        fits = [(form, name) for form, name in fits if name not in denied]
        # "There is no X but Y" is no choice of "No X".
        fits = [(form, name) for form, name in fits if any(word[0] != "-" for word in form)] or fits
        return {name for form, name in fits if not any(form < more for more, _ in fits)}

    @cached_property
    def _forms(self) -> list[tuple[set[str], str]]:
        """The sets of signed words that identify an option, each with its name."""
        full, parts = [], []
        for text in self.texts.values():
            name = _words(text)
            clauses = [clause for clause in _CLAUSE_END.split(text) if _words(clause)]
            if clauses and _words(clauses[0]) in ("yes", "no", "none"):
                del clauses[0]
            full.append((_Signed("\n".join(clauses)).words, name))
            parts += [(_Signed(clause).words, name) for clause in clauses if " " in _words(clause)]
            if " " in name:  # initials
                parts.append((set(_content("".join(word[0] for word in name.split()))), name))
        wholes = [form for form, _ in full]
        forms = [*full, *((form, name) for form, name in parts if form not in wholes)]
        return [(form, name) for form, name in forms if any(map(_is_long, form))]

    def _lists_options(self, statement: str) -> bool:
        """Whether a statement has words of three options or more that no other option has."""
        said = set(_words(statement).split())
        options = [{word for word in name.split() if len(word) > 3} for name in self.letters_of]
        own = [
            option.difference(*(other for other in options if other is not option)) for option in options
        ]
        return sum(map(bool, map(said.intersection, own))) > 2

    def _yes_or_no(self, passage: str, statements: list[str]) -> set[str]:
        """The names of options that begin with the yes or no that `passage` begins with or implies."""
        first = re.match(r"\W*(yes|no)\b(?=[\s.]*$|[,.;:!])", passage, re.IGNORECASE)
        if first:
            return {name for name in self.letters_of if name.split()[:1] == [first[1].lower()]}
        main = [_RELATIVE.split(sentence)[0] for sentence in _SENTENCE_END.split(passage)]
        if any(map(_DOUBT.search, main)) or not all(re.match(r"(?:yes|no)\b", n) for n in self.letters_of):
            return set()
        positive = [*itertools.filterfalse(_NEGATION.search, statements)]
        finds = any(_FINDING.search(_words(statement)) for statement in positive)
        if finds == (len(positive) < len(statements)):
            return set()
        return {"yes" if finds else "no"} & set(self.letters_of)


def _statements(passage: str) -> list[str]:
    """The sentences of `passage` that state something, and their main clauses."""
    statements = []
    for sentence in _SENTENCE_END.split(passage):
        for clause in dict.fromkeys([_RELATIVE.split(sentence)[0], sentence]):
            if _DOUBT.search(clause) or _GENERAL.search(clause):
                break
            statements.append(clause)
    return [*filter(_words, statements)]


def _stated_and_denied(text: str) -> tuple[str, list[str]]:
    """What `text` states, and the parts that it denies."""
    stated, denied = [], []
    for clause in _CLAUSE_BREAK.split(text):
        negation = _NEGATION.search(clause)
        if negation and negation["all"]:
            denied += [clause[: negation.start()], clause[negation.end() :]]
        elif negation:
            stated.append(clause[: negation.start()])
            denied.append(clause[negation.end() :])
        else:
            stated.append(clause)
    return "".join(stated), denied


class _Signed:
    """The words that a text states and, with a minus, those that it denies."""

    def __init__(self, text: str) -> None:
        self.text = _words(text)
        stated, denied = _stated_and_denied(text)
        self.words = set(_content(stated))
        self._heads = set()
        for part in denied:
            for item in re.split(r",|\b(?:or|and|nor)\b", part):
                words = [word for word in _content(item) if not _FILLERS.fullmatch(word)]
                self._heads |= {f"-{word}" for word in words[:1]}
                self.words |= {f"-{word}" for word in words}

    def holds(self, form: set[str]) -> bool:
        """Whether the text says all of `form`, and of what that denies nothing more special."""
        denied = {word for word in form if word[0] == "-"}
        return form <= self.words and (not denied or bool(denied & self._heads))


def _is_long(word: str) -> bool:
    return len(word) > 1 or word.isdigit()


def twin_key(text: str) -> str:
    """What `text` shares with its twins, options that differ only in case, white space or punctuation.

    Signs stay, and so do the marks in a number: "+" is not "-", nor 1.5 15.
    """
    return "".join(_TWIN_PARTS.findall(text.casefold())) or text.strip()


def _words(text: str) -> str:
    """`text` in lower case without articles, plural s and punctuation, words separated by spaces."""
    text = re.sub(r"[’'´`]|\b(?:a|A(?= [a-z])|(?i:an|the|of))\b|(?<=\b[Xx])[- ](?=[Rr]ay)", "", text)
    words = (_NUMBERS.get(word, word) for word in re.findall(r"[^\W_]+", text.lower()))
    return " ".join(re.sub(r"(?<=\w{3})(?<![is])s$", "", word) for word in words)


def _content(text: str) -> list[str]:
    """The words of `text` that are no function words."""
    return [word for word in _words(text).split() if not _FUNCTION_WORDS.fullmatch(word)]
