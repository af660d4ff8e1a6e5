"""Prompts of tables: the headings of published sets, quotes, and what is wrong in one line."""

from pathlib import Path

import pytest

from ldpruner.errors import ProbeError
from ldpruner.pipelines.prompts import UNCATEGORIZED, read_prompts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'prompt,category\n"a cat, a dog",Animals\nthe sea,\n'),
        ("drawbench.CSV", '\ufeffPrompts,Category\r\n"a cat, a dog", Animals \r\nthe sea,\r\n\r\n'),
        ("a.csv", 'Category,id,Prompt\nAnimals,3,"a cat, a dog"\n,4,the sea\n'),
        ("parti.tsv", "Prompt\tCategory\tChallenge\tNote\na cat, a dog\tAnimals\tBasic\t\nthe sea\t\tBasic\tx\n"),
        ("a.jsonl", '{"prompt": "a cat, a dog", "category": "Animals"}\n\n{"prompt": "the sea", "seed": 3}\n'),
    ],
)
def test_prompts_have_the_category_of_their_row(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    prompts = read_prompts(tmp_path / name)
    assert prompts.texts == ("a cat, a dog", "the sea")
    assert prompts.categories == ("Animals", UNCATEGORIZED)


def test_a_file_without_categories_has_none(tmp_path: Path) -> None:
    for name, content in (("a.txt", "a, b\n\nc\n"), ("a.csv", 'prompt\n"a, b"\nc\n'), ("a.tsv", "prompt\na, b\nc")):
        (tmp_path / name).write_text(content)
        assert read_prompts(str(tmp_path / name)) == (("a, b", "c"), None)


def test_quotes_are_part_of_a_prompt_between_tabs(tmp_path: Path) -> None:
    """As in PartiPrompts."""
    (tmp_path / "a.tsv").write_text('Prompt\tCategory\n"HI" on a wall\tWriting\na sign that says "HI"\tWriting\n')
    assert read_prompts(tmp_path / "a.tsv").texts == ('"HI" on a wall', 'a sign that says "HI"')


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,category\na cat,Animals\n", "line 2 has 'text', 'category', and no text as 'prompt'"),
        ("a.csv", "a cat\na dog\n", "line 2 has 'a cat', and no text as 'prompt'"),
        ("a.csv", "prompt,category\na cat, a dog,Animals\n", "line 2 has more fields .* put quotes around"),
        ("a.csv", "prompt,category\n,Animals\n", "holds no prompt"),
        ("a.csv", "", "holds no prompt"),
        ("a.csv", "prompt\n" + "a" * 200_000, "field larger than field limit"),
        ("a.tsv", "prompt\ta\nb\tc\td\n", "a prompt holds no tabs"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"\n', "JSONDecodeError"),
        ("a.jsonl", '{"prompt": 3}\n', "no text as 'prompt'"),
        ("a.jsonl", '"a cat"\n', "line 1 is 'a cat'; write it as"),
        ("a.jsonl", '{"prompt": "a", "category": ["b"]}', r"the category \['b'\] is no text"),
        ("a.jsonl", "[" * 100_000, "RecursionError|line 1"),
    ],
)
def test_what_is_no_table_of_prompts_is_one_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ProbeError, match=words) as caught:
        read_prompts(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
