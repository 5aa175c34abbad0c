"""Extracts the chosen option from a multiple-choice response.

The rules apply in this order; the first that finds a choice decides.

1. The prompt's example of an answer ("This is my thought.", "Correct letter.") is ignored.
2. A declared choice: the content of `<answer>` (closed or not) or `\\boxed{}`, or the text after
   "the answer is", "Diagnosis:", "I choose" and the like. The last valid choice wins. An answer tag without
   a valid choice ends the search: the model has answered with none of the options.
3. A line that is a letter or begins with one ("B.", "B) text"), if all such lines agree. From this rule on,
   the reasoning in `<think>` counts only if there is nothing else.
4. A concluding sentence ("Therefore ..."), the last first; then the whole response.

Within each rule, letters take precedence over text:

- A letter counts if it comes first and is set off ("B", "b.", "(B) text", "B because"), or if it is the
  only one marked as an option ("option B", "(B)", "B. text" with the text of any option). All other letters
  are prose. A letter that is not an option is ignored.
- Text counts if it names exactly one option, in full or by its initials, ignoring case, punctuation,
  articles and plurals. A name inside another option's name does not count, nor does a negated one ("not",
  "rather than", "whether", "is unlikely"). Options that differ only in what is ignored are ambiguous.
- Otherwise, in a passage of at most three sentences: one sentence has all words of exactly one option, or
  of one of its clauses, in any order, and a "no" only if the option has one.
- Otherwise, if every option is a yes or a no: at most three sentences without an expression of doubt mean
  no if they only negate, and yes if they only state a finding.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

from smmile.prompting.options import Options

_MAX_DECLARATIONS = 100  # Only the last declarations are examined: more than any real response has.
_CONTEXT = 150  # Characters of context around a match, so that long responses take linear time.

# The prompt's example of an answer, as models echo it.
_TEMPLATE = re.compile(
    r"<think>\s*This is my thought\.?\s*</think>\s*(?:<answer>\s*(?:X|Correct letter)\.?\s*</answer>)?"
    r"|This is my thought\b|Correct letter(?=\.|\s*(?:<|$))|<answer>X</answer> where X\b"
    r"|Alternatively:\s*The correct answer is X\b",
    re.IGNORECASE,
)
# Markup for bold, code and formulas, and LaTeX commands for fonts.
_MARKUP = re.compile(r"[*`$]+|\\(?:text|textbf|mathbf|mathrm|bf|rm)\b(?=\s*\{)")
_TAG = re.compile(r"</?\s*(?:think|answer)\s*>", re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"</\s*think\s*>", re.IGNORECASE)
# Not after "B." or the "E." of "E. coli".
_SENTENCE_END = re.compile(r"(?<=[.!?;])(?<!\b[A-Z]\.)\s+|\n+")

# The choice follows the match. The words in between must not negate it.
_DECLARED = re.compile(
    r"(?P<tag><\s*answer\s*>)|(?P<box>\\boxed\s*\{)"
    r"|(?<!to )(?<!incorrect )(?<!wrong )\b(?:answer|diagnosis"
    r"|(?:my|correct|best|right|final|likely|appropriate|accurate)\s+(?:[\w-]+\s+)?(?:option|choice|letter))\b"
    r"(?P<words>[^.:;=!?\n<>]{0,80}?)(?:\b(?:is|be)\b:?|[:=]|\s[-–—]\s)"
    r"|\b(?:I|we)\b(?P<verb>[^.:;=!?\n<>]{0,30}?)\b(?:choose|select|pick|go with)\b",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|consequently|so,|in conclusion|in summary|overall|based on|diagnosis"
    r"|suggests|suggesting|appears? to be|most likely|most consistent)\b",
    re.IGNORECASE,
)

# Words that may precede a chosen letter: "most likely option (".
_BEFORE_LETTER = re.compile(
    r"[\s\"'“‘(\[{]*(?:(?:the|most|likely|probably|definitely|clearly|simply|correct|answer|option|letter"
    r"|choice|thus|therefore|hence|so|it|is|must be|i['’]d say|i would say)\b[\s:,\"'“‘(\[{]*){0,5}",
    re.IGNORECASE,
)
_LETTER = re.compile(r"([A-Za-z]{1,2})(?!['’-]?\w)")
# What must follow it, to exclude "A 45-year-old" and "B cells".
_AFTER_LETTER = re.compile(
    r"\s*(?:[])}.:,;!?\"'”’](?!\w)|[-–—]|$)|\s*\n"
    r"|\s+(?:because|since|as|for|which|with|based|due|given|is|are|was|but|in|and|or|rather|not)\b"
)
_AFTER_SMALL_LETTER = re.compile(r"\s*(?:[]).:\"'”](?:\W|$)|$)")
_ANOTHER_LETTER = re.compile(
    r"\W{0,3}(?:(?:[,/&]|\b(?:and|or)\b)\W{0,2}){1,2}(?:option )?\W?([A-Z]{1,2})\b(?!['’-]\w)"
)
_LINE_LETTER = re.compile(r"[ \t>•-]*[\"'(\[]?([A-Z]{1,2})(?:[.):\]]+(?!\w)|\s+[-–—]\s|\s*$)")
_MARKED_LETTER = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)[ :\"'“(\[]{1,4}([A-Z]{1,2})\b(?!['’-]\w)"
    r"|\(([A-Z]{1,2})\)|(?<![\w-])([A-Z]{1,2})[.):]\s+(?=\w)"
)

_NEGATED_BEFORE = re.compile(
    r"\b(?:not?|never|neither|nor|cannot|\w+n't|(?:do|does|did|is|are|was|were|would)nt|without|incorrect"
    r"|wrong|except|rather than|instead of|opposed to|versus|unlike|unlikely|absence|rules? out|excludes?"
    r"|if|whether)\b",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"[^\w.]*(?:\w+ )?(?:is|are|was|were|seems?|appears?|can be|would be)\s+"
    r"(?:not|incorrect|wrong|unlikely|less likely|absent|ruled out|excluded)\b",
    re.IGNORECASE,
)
# Where the scope of a negation ends.
_NEGATION_END = re.compile(
    r"\b(?:but|however|although|though|while|whereas|instead(?! of)|so|therefore|thus|hence)\b|[.;!?\n]\s"
)

# The patterns below apply to the output of `_words`.
# Responses spell out numbers that options give as digits.
_NUMBERS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"}
_FUNCTION_WORD = re.compile(
    r"\b(?:and|as|at|be|by|in|is|are|it|on|or|this|there|to|with|so|up|us|he|me|we|my|do|go|if|am)\b"
)
_NO = re.compile(
    r"\b(?:no|not|without|none|never|neither|nor|absent|absence|lacks?|rather|(?:do|does|is|are)nt)\b"
)
_DOUBT = re.compile(
    r"\b(?:if|whether|question|determine|possible|cannot|clear|unclear|difficult|need|may|might|could|can"
    r"|know|idea|provided|information|unable|sorry|available|access)\b"
)
# States a finding, not just the type of image.
_FINDING = re.compile(
    r"\b(?:shows?|showing|shown|reveals?|demonstrates?|indicates?|suggests?|there (?:is|are)|consistent"
    r" with|present|evidence|signs?)\b(?! (?:\w+ ){0,2}(?:image|scan|xray|radiograph|ct|mri|computed"
    r"|magnetic|ultrasound|view|slide|section|photo\w*|picture|ecg|eeg|normal)\b)"
)


def read_choice(response: str, options: Options) -> str | None:
    """The letter of the option that `response` chooses by the rules above, or None."""
    text = _MARKUP.sub("", _TEMPLATE.sub("", response))
    reader = _Reader(options.texts)
    thought, _, after = text.rpartition("</think>")
    if thought and not _DECLARED.search(after) and (choice := reader.letter(after.strip())):
        return choice
    for passage, kind in _declared(text):
        choice = reader.letter(passage) if kind == "verb" else reader.choice(passage)
        if choice or (kind == "tag" and passage.strip(" .\n") not in ("", "X")):
            return choice
    rest = _END_OF_THOUGHT.split(text)[-1]
    rest = _TAG.sub("\n", rest if rest.strip() else text)
    listed: set[str] = set()
    conclusions: list[str] = []
    for line in rest.splitlines():
        match = _LINE_LETTER.match(line)
        if match and match[1] in options.texts and not reader.begins_an_option(line[match.start(1) :]):
            listed |= {match[1]} | reader.marked_letters(line)
        else:
            conclusions += filter(_CONCLUDES.search, _SENTENCE_END.split(line))
    if len(listed) == 1:
        return listed.pop()
    return next(filter(None, map(reader.choice, [*reversed(conclusions), rest])), None)


def _declared(text: str) -> Iterator[tuple[str, str]]:
    """Declared choices, the last first, each with the name of its group in `_DECLARED`."""
    end = len(text)
    for match in reversed(list(_DECLARED.finditer(text))[-_MAX_DECLARATIONS:]):
        kind = match.lastgroup or ""
        if kind == "tag":
            yield _TAG.split(text[match.end() : end], maxsplit=1)[0], kind
            end = match.start()
        elif not _NEGATED_BEFORE.search(match[kind]):
            passage = _TAG.split(text[match.end() : match.end() + 2 * _CONTEXT].lstrip())[0]
            yield (passage.partition("}")[0] if kind == "box" else _SENTENCE_END.split(passage)[0]), kind


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

    def letter(self, passage: str) -> str | None:
        """The letter at the beginning of `passage`, if it is set off from what follows."""
        start = _BEFORE_LETTER.match(passage)
        match = _LETTER.match(passage, start.end() if start else 0)
        if not match or (letter := match[1].upper()) not in self.texts:
            return None
        rest = passage[match.end() : match.end() + _CONTEXT]
        if match[1].islower():
            return letter if _AFTER_SMALL_LETTER.match(rest) else None
        another = _ANOTHER_LETTER.match(rest)
        if (another and another[1] in self.texts) or _NEGATED_AFTER.match(rest):
            return None
        if self.begins_an_option(passage[match.start() :]):
            return None
        marked = self.marked_letters(passage)
        if letter in marked and len(marked) > 1:  # "A) yes B) no"
            return None
        return letter if _AFTER_LETTER.match(rest) or self._begins_with_name(rest) else None

    def marked_letters(self, passage: str) -> set[str]:
        """The letters that `passage` marks as options and does not negate."""
        return {
            letter
            for match in _MARKED_LETTER.finditer(passage)
            if (letter := match[1] or match[2] or match[3]) in self.texts
            and not _is_negated(passage, match)
            and (not match[3] or self._begins_with_name(passage[match.end() : match.end() + _CONTEXT]))
        }

    def begins_an_option(self, passage: str) -> bool:
        """Whether the first letter of `passage` is part of an option's text, as in "E. coli"."""
        texts = (text.strip().lower() for text in self.texts.values())
        return any(len(text) > 2 and passage[: len(text)].lower() == text for text in texts)

    def _begins_with_name(self, passage: str) -> bool:
        words = _words(passage) + " "
        return any(words.startswith(f"{name} ") for name in self.letters_of)

    def choice(self, passage: str) -> str | None:
        """The letter of the option that `passage` chooses, by letter or else by text."""
        marked = self.marked_letters(passage)
        letter = self.letter(passage) or (marked.pop() if len(marked) == 1 else None)
        return letter or self.text(passage)

    def text(self, passage: str) -> str | None:
        """The letter of the only option that matches the words of `passage`."""
        sentences = [words for sentence in _SENTENCE_END.split(passage) if (words := _words(sentence))]
        names = {" ".join(sentences) or passage.strip()} & set(self.letters_of)
        if not names:
            names = self._named(sentences)
            if len(names) < 2 and len(sentences) <= 3:
                by_words = self._with_all_words(sentences)
                if by_words and all(
                    set(name.split()) < set(more.split()) for name in names for more in by_words
                ):
                    names = by_words
                names = names or self._implied_yes_or_no(sentences)
        letters = self.letters_of[names.pop()] if len(names) == 1 else []
        return letters[0] if len(letters) == 1 else None

    def _named(self, sentences: list[str]) -> set[str]:
        """The names of options that occur in the sentences without negation."""
        pattern, names = self._aliases
        return {
            names[match[0]]
            for sentence in sentences
            for match in pattern.finditer(sentence)
            if match[0] in names and not _is_negated(sentence, match)
        }

    @cached_property
    def _aliases(self) -> tuple[re.Pattern[str], dict[str, str]]:
        """A pattern for names and unambiguous initials of options, and the name that each stands for."""
        shorter = defaultdict(set)
        for name in self.letters_of:
            words = name.split()
            if len(words) > 1:
                yes_or_no = words[0] in ("yes", "no")
                shorter[words[0] if yes_or_no else "".join(word[0] for word in words)].add(name)
        names = {short: min(of) for short, of in shorter.items() if len(of) == 1}
        names = {short: name for short, name in names.items() if not _FUNCTION_WORD.fullmatch(short)}
        names |= {name: name for name in self.letters_of}
        # Single letters are too common in prose to be names; so are yes and no, except at the beginning.
        prose = [name for name in names if (len(name) > 1 or name.isdigit()) and name not in ("yes", "no")]
        parts = [*map(re.escape, sorted(prose, key=len, reverse=True)), "^(?:yes|no)"]
        return re.compile(rf"(?<!\S)(?:{'|'.join(parts)})(?!\S)"), names

    def _with_all_words(self, sentences: list[str]) -> set[str]:
        """The names of options whose words, or those of one clause, all occur in one sentence."""
        fits = [
            (words, name)
            for has in (_with_no(sentence) for sentence in sentences if not _DOUBT.search(sentence))
            for words, name in self._word_sets
            if words <= has and ("no" in words) == ("no" in has)
        ]
        return {name for words, name in fits if not any(words < more for more, _ in fits)}

    @cached_property
    def _word_sets(self) -> list[tuple[set[str], str]]:
        """The sets of words that identify an option, each with its name."""
        found = []
        for text in self.texts.values():
            name = _words(text)
            clauses = [clause for part in re.split(r"[.,;:()]| - ", text) if (clause := _words(part))]
            if len(clauses) > 1 and clauses[0] in ("yes", "no", "none"):
                del clauses[0]
            for clause in {" ".join(clauses), *(clause for clause in clauses if " " in clause)}:
                words = _with_no(_FUNCTION_WORD.sub("", clause))
                if name not in ("yes", "no") and any(len(word) > 1 or word.isdigit() for word in words):
                    found.append((words, name))
        return found

    def _implied_yes_or_no(self, sentences: list[str]) -> set[str]:
        """The answer to a yes-or-no question that the sentences imply."""
        if not all(re.match(r"(?:yes|no)\b", name) for name in self.letters_of):
            return set()
        if any(_DOUBT.search(sentence) for sentence in sentences):
            return set()
        negates = any(_NO.search(sentence) for sentence in sentences)
        finds = any(_FINDING.search(sentence) and not _NO.search(sentence) for sentence in sentences)
        return {"yes" if finds else "no"} & set(self.letters_of) if finds != negates else set()


def _words(text: str) -> str:
    """`text` in lower case without articles, plural s and punctuation, words separated by spaces."""
    text = re.sub(r"[’'´`]|\b(?:an?|the|of)\b|(?<=\bx)[- ](?=ray)", "", text.lower())
    words = (_NUMBERS.get(word, word) for word in re.findall(r"[^\W_]+", text))
    return " ".join(re.sub(r"(?<=\w{4})(?<!s)s$", "", word) for word in words)


def _with_no(words: str) -> set[str]:
    """The set of `words`, with "no" added if any of them is a negation."""
    return set(words.split()) | ({"no"} if _NO.search(words) else set())


def _is_negated(text: str, name: re.Match[str]) -> bool:
    """Whether the words around a match in `text` negate it."""
    before = _NEGATION_END.split(text[max(0, name.start() - _CONTEXT) : name.start()])[-1]
    return bool(
        _NEGATED_BEFORE.search(before) or _NEGATED_AFTER.match(text[name.end() : name.end() + _CONTEXT])
    )
