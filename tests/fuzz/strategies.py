"""Damage: bytes that are flipped, cut or inserted, and documents with fields that are missing, renamed or replaced."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

Strategy = st.SearchStrategy
Path = tuple[str | int, ...]

# What a user or a damaged file may give where something else is meant.
JUNK: Strategy[Any] = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 3, 10**18, 10**400, 0.5, -0.5, 1e308, math.inf, math.nan]),
    st.sampled_from(["", " ", "x", "\0", "a\nb", "\x1b[31m", "[/]", "../x", "nan", "1e-4", "ä\u2028", "x" * 5000]),
    st.sampled_from([[], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [1, "a"]]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)


@st.composite
def damaged(pick: st.DrawFn, data: bytes) -> bytes:
    """Bytes of a file with some flipped, cut off, doubled or inserted."""
    contents = bytearray(data)
    for _ in range(pick(st.integers(1, 4))):
        size = len(contents)
        start = pick(st.integers(0, max(0, size - 1)))
        kind = pick(st.sampled_from(["flip", "flip", "flip", "cut", "drop", "double", "insert"]))
        if kind == "flip" and size:
            contents[start] ^= pick(st.integers(1, 255))
        elif kind == "cut":
            del contents[start:]
        elif kind == "drop":
            del contents[start : start + pick(st.integers(1, 64))]
        elif kind == "double":
            contents[start:start] = contents[start : start + pick(st.integers(1, 64))]
        else:
            contents[start:start] = pick(st.binary(min_size=1, max_size=16))
    return bytes(contents)


@st.composite
def changed(pick: st.DrawFn, document: Any, changes: int = 2) -> Any:
    """A document of mappings and lists in which some values are replaced, removed, renamed or added."""
    document = copy.deepcopy(document)
    for _ in range(pick(st.integers(1, changes))):
        last: Any
        *parents, last = pick(st.sampled_from(list(_paths(document)) or [("x",)]))
        holder: Any = document
        for part in parents:
            holder = holder[part]
        kind = pick(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
        if not isinstance(holder, (dict, list)) or (kind == "replace" and last not in _keys(holder)):
            continue
        if kind == "replace":
            holder[last] = copy.deepcopy(pick(JUNK))
        elif kind == "remove" and last in _keys(holder):
            del holder[last]
        elif isinstance(holder, dict) and kind == "rename" and last in holder:
            holder[f"{last}{pick(st.sampled_from('sx_ '))}"] = holder.pop(last)
        elif isinstance(holder, dict):
            holder[pick(st.text(max_size=8))] = copy.deepcopy(pick(JUNK))
    return document


def _keys(holder: Any) -> Any:
    return holder.keys() if isinstance(holder, dict) else range(len(holder))


def _paths(document: Any, before: Path = ()) -> Iterator[Path]:
    """The places of all values in a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*before, key)
        if isinstance(value, (dict, list)):
            yield from _paths(value, (*before, key))


def json_files(document: Any) -> Strategy[bytes]:
    """JSON files that are like a document, whole or damaged."""
    whole = json.dumps(document).encode()
    deep = b'{"removed":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    odd = st.sampled_from([b"", b"{", b"[]", b"3", b"null", b'"removed"', b"\xff\xfe{}", b"{}", deep, whole[:-1]])
    return st.one_of(changed(document).map(lambda other: json.dumps(other).encode()), damaged(whole), odd)


def yaml_files(document: Any) -> Strategy[bytes]:
    """YAML files that are like a document, whole or damaged."""
    whole = yaml.safe_dump(document).encode()
    odd = st.sampled_from(
        [
            b"",
            b"- a",
            b"a: b: c",
            b"&a [*a]",
            whole + whole,
            whole + b"when: 2020-01-01\n",
            whole + b"kinds: !!set {a, b}\n",
            whole + b"run: !!python/object/apply:os.system [ls]\n",
            whole + b"number: 0x" + b"f" * 5000,
            b"model: " + b"{a: " * 3000,
            b"a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        ]
    )
    return st.one_of(changed(document).map(lambda other: yaml.safe_dump(other).encode()), damaged(whole), odd)


def words_like(*texts: str) -> Strategy[str]:
    """Words of a command line that are like some good ones. No command line holds a NUL byte."""
    letters = st.sampled_from([*"=,.-[]{}\"'\\ \n\t0129eEnN", "\x1b", "\u2028", "nan", "inf", "true", "null", "1e999"])

    @st.composite
    def edited(pick: st.DrawFn) -> str:
        word = pick(st.sampled_from(texts))
        for _ in range(pick(st.integers(0, 3))):
            place = pick(st.integers(0, len(word)))
            word = word[:place] + pick(letters) + word[place + pick(st.integers(0, 2)) :]
        return word

    free = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
    return st.one_of(edited(), free)
