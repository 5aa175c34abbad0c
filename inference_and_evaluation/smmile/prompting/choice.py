"""Extracts the chosen option from a multiple-choice response.

The rules apply in this order; the first that finds a choice decides. Where text follows the reasoning in
`<think>`, only that text counts.

1. A declared choice: the content of `<answer>` (closed or not) or `\\boxed{}`, or the text after
   "the answer is", "Diagnosis:", "I choose" and the like, unless that is conditional ("if ..."). The last
   valid choice wins. An answer tag without a valid choice ends the search: the model has answered with none
   of the options. The prompt's example of an answer ("This is my thought.", "Correct letter.") is ignored.
2. A response of several sentences that is truncated in the middle of one has no other choice.
3. A line that is a letter or begins with one ("B.", "B) text"), if all such lines agree.
4. A concluding sentence ("Therefore ..."), the last first; then the whole response, if it has at most three
   sentences.

Within each rule, letters take precedence over text:

- A letter counts if it comes first and is set off ("B", "b.", "(B) text", "B because"), or if it is the
  only one marked as an option ("option B", "(B)", "B. text" with the text of any option). All other letters
  are prose. A letter that is not an option is ignored.
- Text counts if it names exactly one option, in full or by its initials, ignoring case, punctuation,
  articles and plurals. A name inside another option's name does not count, nor does one that is negated
  anywhere ("not", "rather than", "is unlikely"). Sentences that express doubt ("may", "either", "whether")
  or general knowledge ("typically", "such as"), or list three options, name nothing.
- Otherwise, in a passage of at most three sentences: one sentence, or all together, have all words of
  exactly one option, or of one of its clauses, in any order, and a "no" only if the option has one.
- Otherwise, if every option is a yes or a no: at most three sentences without doubt mean no if they only
  negate, and yes if they only state a finding.

Options that differ only in case, white space or punctuation are twins. A text that fits one of them fits
all: it chooses the twins, but none of their letters.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

from smmile.prompting.options import Options

_MAX_DECLARATIONS = 100  # Only the last declarations are examined: more than any real response has.
_FEW_SENTENCES = 3  # In longer passages, single words are too often prose.
_CONTEXT = 150  # Characters of context around a match, so that long responses take linear time.

# The prompt's example of an answer, as models echo it.
_TEMPLATE = re.compile(
    r"<think>\s*This is my thought\.?\s*</think>\s*(?:<answer>\s*(?:X|Correct letter)\.?\s*</answer>)?",
    re.IGNORECASE,
)
# Markup for bold, code and formulas, and LaTeX commands for fonts.
_MARKUP = re.compile(r"[*`$]+|\\(?:text|textbf|mathbf|mathrm|bf|rm)\b(?=\s*\{)")
_TAG = re.compile(r"</?\s*(?:think|answer)\s*>", re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"</\s*think\s*>", re.IGNORECASE)
# Not after "B." or the "E." of "E. coli".
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)\s+|\n+")

# The choice follows the match. The words in between must not negate it.
_DECLARED = re.compile(
    r"(?P<tag><\s*answer\s*>)|(?P<box>\\boxed\s*\{)"
    r"|(?<!to )(?<!incorrect )(?<!wrong )\b(?:answer|diagnosis"
    r"|(?:my|correct|best|right|final|likely|appropriate|accurate)\s+(?:[\w-]+\s+)?(?:option|choice|letter))\b"
    r"(?P<words>[^.:;=!?\n<>]{0,80}?)(?:\b(?:is|be)\b:?|[:=])"
    r"|\b(?:I|we)\b(?P<verb>[^.:;=!?\n<>]{0,30}?)\b(?:choose|select|pick|go with)\b",
    re.IGNORECASE,
)
# Makes what is declared after it conditional, but not in "if I had to choose".
_CONDITION = re.compile(r"\b(?:if|unless|whether)\b(?! (?:I|we) )", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|in conclusion|in summary|overall|based on|diagnosis|most likely"
    r"|most consistent)\b",
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
    r")\b",
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

# What makes options differ that are no twins: letters, digits, signs, and marks within and before numbers.
_TWIN_PARTS = re.compile(r"[^\W_]|[+<>=±≤≥]|(?<=\d)\W+(?=\d)|(?<!\w)[.-](?=\d)")

# Sentences with these state nothing about the image: doubts, questions and talk about the task,
_DOUBT = re.compile(
    r"\b(?:if|whether|either|cannot|could|may|might|would|should|(?:un)?clear|difficult|differentiate"
    r"|determine|assess|looking for|question|options|option [A-Z]|provided|information|know|idea)\b|\?\s*$",
    re.IGNORECASE,
)
# and general knowledge.
_GENERAL = re.compile(
    r"\b(?:can|such as|including|typically|often|characterized|consists?)\b", re.IGNORECASE
)
# What follows a main clause.
_RELATIVE = re.compile(r",? (?:which|where|who|without|with no|as indicated|as there)\b")

# The patterns below apply to the output of `_words`.
# Responses spell out numbers that options give as digits.
_NUMBERS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"}
_CLAUSE_END = re.compile(r"[.,;:()]| - |(?:suggestive|indicative|consistent) (?:of|with)")
_FUNCTION_WORD = re.compile(
    r"\b(?:and|as|at|be|by|in|is|are|it|on|or|this|there|to|with|so|up|us|he|me|we|my|do|go|if|am|but)\b"
)
_NO = re.compile(
    r"\b(?:no|not|without|none|never|neither|nor|absent|absence|rather|(?:do|does|is|are)nt)\b"
)
# What a negation denies: "no tension pneumothorax" denies tension, not pneumothorax.
_DENIED = re.compile(
    r"\bno (?:(?:show|have|see|any|evidence|sign|visible|obvious|apparent|definite|present) )*(\w+)"
)
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
    text = _MARKUP.sub("", _TEMPLATE.sub("", response))
    after = _END_OF_THOUGHT.split(text)[-1]
    if _TAG.sub("", after).strip():
        text = after
    reader = _Reader(options.texts)
    for passage, kind in _declared(text):
        choice = reader.by_letter(passage) if kind == "verb" else reader.choice(passage)
        if choice or (kind == "tag" and passage.strip(" .\n") not in ("", "X")):
            return choice
    rest = _TAG.sub("\n", text).strip()
    if _is_truncated(rest):
        return ()
    listed: set[str] = set()
    conclusions: list[str] = []
    for line in rest.splitlines():
        match = _LINE_LETTER.match(line)
        if match and match[1] in options.texts and not reader.begins_an_option(line[match.start(1) :]):
            listed |= {match[1]} | reader.marked_letters(line)
        else:
            conclusions += filter(_CONCLUDES.search, _SENTENCE_END.split(line))
    if len(listed) == 1:
        return (listed.pop(),)
    passages = [*reversed(conclusions), *([rest] if _has_few_sentences(rest) else [])]
    return next(filter(None, map(reader.choice, passages)), ())


def _declared(text: str) -> Iterator[tuple[str, str]]:
    """Declared choices, the last first, each with the name of its group in `_DECLARED`."""
    end = len(text)
    for match in reversed(list(_DECLARED.finditer(text))[-_MAX_DECLARATIONS:]):
        kind = match.lastgroup or ""
        if kind == "tag":
            yield _TAG.split(text[match.end() : end], maxsplit=1)[0], kind
            end = match.start()
        elif not _NEGATED_BEFORE.search(match[kind]) and not _CONDITION.search(
            _SENTENCE_END.split(text[max(0, match.start() - _CONTEXT) : match.start()])[-1]
        ):
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

    def choice(self, passage: str) -> tuple[str, ...]:
        """The letters of the option that `passage` chooses, by letter or else by text."""
        marked = self.marked_letters(passage)
        letter = self.letter(passage) or (marked.pop() if len(marked) == 1 else None)
        return (letter,) if letter else self.text(passage)

    def by_letter(self, passage: str) -> tuple[str, ...]:
        """The letter at the beginning of `passage` as a choice."""
        letter = self.letter(passage)
        return (letter,) if letter else ()

    def text(self, passage: str) -> tuple[str, ...]:
        """The letters of the only option, or of the only twins, that match the words of `passage`."""
        whole = _words(passage) or passage.strip()
        sentences = [words for words in _statements(passage) if not self._lists_options(words)]
        names = {whole} & set(self.letters_of)
        if not names:
            names, denied = self._named(sentences)
            if len(names) < 2 and _has_few_sentences(passage):
                by_words = self._with_all_words(sentences) - denied
                if len(by_words) != 1:
                    by_words = self._with_all_words([" ".join(sentences)]) - denied
                if by_words and all(
                    set(name.split()) < set(more.split()) for name in names for more in by_words
                ):
                    names = by_words
                names = names or self._implied_yes_or_no(sentences, passage)
        letters = tuple(self.letters_of[names.pop()]) if len(names) == 1 else ()
        return letters if len({twin_key(self.texts[letter]) for letter in letters}) == 1 else ()

    def _named(self, sentences: list[str]) -> tuple[set[str], set[str]]:
        """The names of options that occur in the sentences and are nowhere negated, and those that are."""
        pattern, names = self._aliases
        found: dict[bool, set[str]] = {False: set(), True: set()}
        for sentence in sentences:
            for match in pattern.finditer(sentence):
                if match[0] in names:
                    found[_is_negated(sentence, match)].add(names[match[0]])
        return found[False] - found[True], found[True]

    def _lists_options(self, sentence: str) -> bool:
        """Whether the words of a sentence are those of three options or more."""
        return len({self._own_words[word] for word in sentence.split() if word in self._own_words}) > 2

    @cached_property
    def _own_words(self) -> dict[str, str]:
        """The words that only one option has, each with the option's name."""
        names = defaultdict(set)
        for name in self.letters_of:
            for word in name.split():
                names[word].add(name)
        return {word: min(of) for word, of in names.items() if len(of) == 1 and len(word) > 3}

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
            for sentence in map(_with_no, sentences)
            for words, name in self._word_sets
            if words <= (has := set(sentence.split())) and ("no" in words) == ("no" in has)
            if "no" not in words or words & set(_DENIED.findall(sentence))
        ]
        return {name for words, name in fits if not any(words < more for more, _ in fits)}

    @cached_property
    def _word_sets(self) -> list[tuple[set[str], str]]:
        """The sets of words that identify an option, each with its name."""
        found = []
        for text in self.texts.values():
            name = _words(text)
            clauses = [clause for part in _CLAUSE_END.split(text) if (clause := _words(part))]
            if len(clauses) > 1 and clauses[0] in ("yes", "no", "none"):
                del clauses[0]
            for clause in {" ".join(clauses), *(clause for clause in clauses if " " in clause)}:
                words = set(_with_no(_FUNCTION_WORD.sub("", clause)).split())
                if (
                    words != {"no"}
                    and name != "yes"
                    and any(len(word) > 1 or word.isdigit() for word in words)
                ):
                    found.append((words, name))
        return found

    def _implied_yes_or_no(self, sentences: list[str], passage: str) -> set[str]:
        """The answer to a yes-or-no question that the sentences imply."""
        if not all(re.match(r"(?:yes|no)\b", name) for name in self.letters_of):
            return set()
        if any(_DOUBT.search(_RELATIVE.split(sentence)[0]) for sentence in _SENTENCE_END.split(passage)):
            return set()
        negates = any(_NO.search(sentence) for sentence in sentences)
        finds = any(_FINDING.search(sentence) and not _NO.search(sentence) for sentence in sentences)
        return {"yes" if finds else "no"} & set(self.letters_of) if finds != negates else set()


def _is_truncated(passage: str) -> bool:
    """Whether `passage` has several sentences, the last of which breaks off."""
    *before, last = _SENTENCE_END.split(passage)
    return bool(before and len(last) > 25 and re.search(r"[\w,(-]$", last) and not _LINE_LETTER.match(last))


def _has_few_sentences(passage: str) -> bool:
    return len(_SENTENCE_END.split(passage.strip())) <= _FEW_SENTENCES


def _statements(passage: str) -> list[str]:
    """The words of the sentences of `passage` that state something, and of their main clauses."""
    statements = []
    for sentence in _SENTENCE_END.split(passage):
        for clause in dict.fromkeys([_RELATIVE.split(sentence)[0], sentence]):
            if _DOUBT.search(clause) or _GENERAL.search(clause):
                break
            statements.append(_words(clause))
    return [*filter(None, statements)]


def twin_key(text: str) -> str:
    """What `text` shares with its twins, options that differ only in case, white space or punctuation.

    Signs stay, and so do the marks in a number: "+" is not "-", nor 1.5 15.
    """
    return "".join(_TWIN_PARTS.findall(text.casefold())) or text.strip()


def _words(text: str) -> str:
    """`text` in lower case without articles, plural s and punctuation, words separated by spaces."""
    text = re.sub(r"[’'´`]|\b(?:an?|the|of)\b|(?<=\bx)[- ](?=ray)", "", text.lower())
    words = (_NUMBERS.get(word, word) for word in re.findall(r"[^\W_]+", text))
    return " ".join(re.sub(r"(?<=\w{4})(?<!s)s$", "", word) for word in words)


def _with_no(words: str) -> str:
    """`words` with "no" for every negation."""
    return _NO.sub("no", words)


def _is_negated(text: str, name: re.Match[str]) -> bool:
    """Whether the words around a match in `text` negate it."""
    before = _NEGATION_END.split(text[max(0, name.start() - _CONTEXT) : name.start()])[-1]
    return bool(
        _NEGATED_BEFORE.search(before) or _NEGATED_AFTER.match(text[name.end() : name.end() + _CONTEXT])
    )
