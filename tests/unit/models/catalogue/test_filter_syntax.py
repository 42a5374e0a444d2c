"""What a filter may look like, and what is said of one that cannot be used."""

import threading
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue.filter_syntax import DEEPEST, MOST_CHARACTERS, MOST_COMPARISONS, FilterError, parse_filter

WORDS = (
    "channel topics language duration_s published_ms views and or not in is if else for lambda await None True "
    '( ) [ ] { } , : . = == != < <= > >= + - * ** / // % @ ~ := 5 -5 1e999 0x1f 1j é # \\ "a" \'b\' b"c" f"{x}"'
)
TOKENS = [*WORDS.split(" "), "\n", "\t", "not in", '"a" in topics', "duration_s < 5"]


@pytest.mark.parametrize(
    ("text", "character", "reason"),
    [
        ("views < 3", 1, "no field 'views'; the fields are channel, topics, language, duration_s, published_ms"),
        ('"é" in topicss', 8, "no field 'topicss'"),
        ('("é" in topics or\n  vies == 3)', 21, "no field 'vies'"),
        ('channel < "a"', 1, "channel has no order"),
        ('topics == "a"', 1, 'write "news" in topics'),
        ('"a" in channel', 8, "expected topics or a list"),
        ('channel in "ab"', 12, "expected a list"),
        ("channel in []", 12, "list of 1 to 256 names"),
        ("channel in [1]", 13, "name in quotes"),
        ('channel in [*"ab"]', 13, "name in quotes"),
        ('channel == b"a"', 12, "name in quotes"),
        ('channel == f"{language}"', 12, "name in quotes"),
        ("channel == language", 12, "name in quotes"),
        ("duration_s < 600 and", 21, "at the end: something is missing after 'duration_s < 600 and'"),
        ("duration_s < ", 13, "something is missing after 'duration_s <'"),
        ("not", 4, "something is missing"),
        ("(duration_s < 600", 1, "was never closed"),
        ('duration_s < 600 && channel == "a"', 19, "write and"),
        ("duration_s = 600", 12, "write == to compare"),
        ("channel == “news”", 12, "straight quotes"),
        ('channel == ""', 12, "1 to 256 characters"),
        (f'channel == "{"x" * 257}"', 12, "1 to 256 characters"),
        ('channel == "a\\n"', 14, "backslash"),
        ('channel == "a\\x0a"', 12, "control character"),
        ('channel == "\\ud800"', 12, "control character"),
        ('channel == "a\x00"', 14, "control character"),
        ("duration_s in [1, 2]", 1, "channel and language only"),
        ('"a" in topics in ["b"]', 8, "channel and language only"),
        ('duration_s < "5"', 14, "expected a number"),
        ("duration_s < True", 14, "expected a number"),
        ("duration_s < 10 * 60", 14, "expected a number"),
        ("duration_s < --5", 14, "expected a number"),
        ("duration_s < 1j", 14, "expected a number"),
        ("duration_s < 1e999", 14, "too large"),
        ("duration_s < 3.5e38", 14, "too large"),
        ("published_ms > 0.5", 16, "whole numbers"),
        (f"published_ms < {2**63}", 16, "from -2**63"),
        (f"duration_s < -{2**63 + 1}", 14, "from -2**63"),
        ("duration_s is 3", 15, "expected =="),
        ('"a" == "b"', 1, "expected a field"),
        ("duration_s + 1 < 3", 1, "expected a field"),
        ("channel.x == 3", 1, "expected a field"),
        ("duration_s", 1, "expected a comparison"),
        ("True", 1, "expected a comparison"),
        ("duration_s < 5 and True", 20, "expected a comparison"),
        ('__import__("os").abort()', 1, "expected a comparison"),
        ("(x := 5)", 2, "expected a comparison"),
        ("[x for x in topics]", 1, "expected a comparison"),
        ('channel = "a"', 9, "write == to compare"),
        ('channel == "a', 12, "unterminated"),
        ("(duration_s < 5", 1, "never closed"),
        ("a\nb", 3, "syntax"),
        ('"\\d" in topics', 2, "backslash"),
        ('r"\\\\d\\d" in topics', 6, "backslash"),
    ],
)
def test_what_is_not_of_the_language_is_refused_with_its_place_and_the_reason(
    text: str, character: int, reason: str
) -> None:
    with pytest.raises(FilterError) as refused:
        parse_filter(text)
    assert reason in str(refused.value)
    assert f"character {character}, at " in str(refused.value)


def nested(depth: int) -> str:
    return "not " * (depth - 1) + "duration_s < 5"


def test_depth_comparisons_lists_and_length_are_bounded() -> None:
    names = [f'"{number}"' for number in range(257)]
    for fits, beyond, reason in [
        (nested(DEEPEST), nested(DEEPEST + 1), "more than 16 deep"),
        (*(" or ".join(["duration_s < 5"] * (MOST_COMPARISONS + more)) for more in (0, 1)), "more than 64 comparisons"),
        ("1 < duration_s < 5", "1 < " * MOST_COMPARISONS + "duration_s < 5", "more than 64 comparisons"),
        (*(f"channel in [{','.join(names[: 256 + more])}]" for more in (0, 1)), "list of 1 to 256 names"),
        (*("duration_s < 5" + " " * (MOST_CHARACTERS - 14 + more) for more in (0, 1)), "at most 4,000"),
    ]:
        parse_filter(fits)
        with pytest.raises(FilterError, match=reason):
            parse_filter(beyond)


def test_an_empty_text_is_no_filter() -> None:
    for text in ("", "  \n"):
        with pytest.raises(FilterError, match="is empty"):
            parse_filter(text)


def test_blanks_lines_and_comments_change_nothing() -> None:
    assert parse_filter('  (channel in ["a",\n\t "b"])  # ours') == parse_filter('channel in ["a", "b"]')


def parses_or_is_refused(text: str) -> None:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, of texts such as 0x1for
        try:
            hash(parse_filter(text))
        except FilterError as error:
            assert str(error).startswith("filter")
    assert time.perf_counter() - start < 1.0


@given(st.text() | st.lists(st.sampled_from(TOKENS), max_size=40).map(" ".join))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    parses_or_is_refused(text)


def test_texts_made_to_hurt_are_refused_at_once_also_on_a_threads_small_stack() -> None:
    hurting = [
        *(
            opening * (MOST_CHARACTERS // len(opening))
            for opening in ("(", "[", "{", "-", "~", "not ", "a[", "a(", "a.")
        ),
        *(opening * 1300 + "duration_s < 5" for opening in ("(", "-", "+", "not")),
        "(" * 199 + "duration_s < 5" + ")" * 199,
        "-" * 3900 + "1 < duration_s",
        "lambda:" * 500 + "1",
        "1 if " * 300 + "1" + " else 1" * 300,
        "duration_s < " + "9" * 3900,
        "duration_s < 1e" + "9" * 3900,
        "1 < " * 900 + "duration_s",
        "9**" * 1000 + "9 < duration_s",
        '"a" * 9999999 * 9999999 in topics',
        "x" * 10_000_000,
        " " * 10_000_000,
        'f"' + "{" * 1000,
    ]
    done: list[None] = []
    thread = threading.Thread(daemon=True, target=lambda: done.extend(map(parses_or_is_refused, hurting)))
    thread.start()
    thread.join()
    assert len(done) == len(hurting)
    for text in hurting:
        if text != "(" * 199 + "duration_s < 5" + ")" * 199:  # no deeper than without them
            with pytest.raises(FilterError):
                parse_filter(text)
