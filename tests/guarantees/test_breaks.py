"""The list of changes, the package, the tests and ``docs/guarantees.md`` say the same."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from .breaks import BREAKS
from .model import Break
from .runner import PACKAGE, ROOT, Run, State, changed, copied, notices

DOCUMENT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NOT_PROMISES = {"Measured"}

each = pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.name)


def sections() -> dict[str, str]:
    """What stands below each heading."""
    _, *parts = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)
    return {heading: text for heading, _, text in (part.partition("\n") for part in parts)}


@cache
def existing_tests(path: str) -> set[str]:
    """The node ids of a file of tests, without parameters."""
    tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    return {f"{path}::{name}" for name in _names(tree)}


def _names(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield node.name
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from (f"{node.name}::{name}" for name in _names(node))


def test_names_are_unique() -> None:
    names = [change.name for change in BREAKS]
    assert len(set(names)) == len(names)


@each
def test_the_text_occurs_once_and_what_comes_of_it_is_python(change: Break) -> None:
    assert change.old != change.new
    ast.parse(changed((PACKAGE / change.file).read_text(encoding="utf-8"), change))


@each
def test_its_tests_exist(change: Break) -> None:
    assert change.tests
    for test in change.tests:
        path, _, _ = test.partition("::")
        assert test.partition("[")[0] in existing_tests(path)


@each
def test_the_document_has_it_where_it_belongs(change: Break) -> None:
    text = sections()[change.promise]
    assert f"`{change.name}`" in text
    for test in change.tests:
        assert f"`{test}`" in text


def test_every_promise_of_the_document_has_a_change() -> None:
    assert {change.promise for change in BREAKS} == set(sections()) - NOT_PROMISES


def test_every_test_and_change_of_the_document_is_in_the_list() -> None:
    tests = set(re.findall(r"`([a-z_/]+\.py::[^`]+)`", DOCUMENT))
    assert tests == {test for change in BREAKS for test in change.tests}
    # As a sentence of its own, and in the last column of the table.
    changes = set(re.findall(r"(?:Change\s+|\| )`([a-z-]+)`:", DOCUMENT))
    assert changes == {change.name for change in BREAKS}


def test_a_change_is_made_in_a_copy() -> None:
    change = BREAKS[0]
    before = (PACKAGE / change.file).read_text(encoding="utf-8")
    with copied(change) as directory:
        copy = directory / PACKAGE.name / change.file
        assert copy.read_text(encoding="utf-8") == before.replace(change.old, change.new)
        assert PACKAGE not in copy.parents
    assert not directory.exists()
    assert (PACKAGE / change.file).read_text(encoding="utf-8") == before


@pytest.mark.parametrize("file_has", ["", "old old"])
def test_a_text_that_is_not_there_once_is_refused(file_has: str) -> None:
    with pytest.raises(ValueError, match=r"times in x\.py"):
        changed(file_has, _change())


def _change(*, hangs: bool = False) -> Break:
    return Break(name="n", promise="P", file="x.py", old="old", new="new", tests=("a.py::t",), hangs=hangs)


@pytest.mark.parametrize(
    ("hangs", "code", "states", "noticed"),
    [
        (False, 1, {"tests/a.py::t": State.FAILED}, True),
        (False, 1, {"tests/a.py::t[1]": State.FAILED, "tests/a.py::t[2]": State.PASSED}, True),
        (False, 0, {"tests/a.py::t": State.PASSED}, False),
        # Another test's failure, or its own beside a broken run, says nothing.
        (False, 1, {"tests/a.py::t": State.PASSED, "tests/a.py::t2": State.FAILED}, False),
        (False, 2, {"tests/a.py::t": State.FAILED}, False),
        (False, 2, {}, False),
        (False, 1, {"tests/a.py::t": State.BROKEN}, False),
        (False, 0, {"tests/a.py::t": State.SKIPPED}, False),
        (False, 1, {"tests/a.py::t": State.LATE}, False),
        (True, 1, {"tests/a.py::t": State.LATE}, True),
        (False, None, {}, False),
        (True, None, {}, True),
        (True, 0, {"tests/a.py::t": State.PASSED}, False),
    ],
)
def test_what_counts_as_noticed(
    hangs: bool,  # noqa: FBT001 - a test's parameter
    code: int | None,
    states: dict[str, State],
    noticed: bool,  # noqa: FBT001 - a test's parameter
) -> None:
    assert (notices(_change(hangs=hangs), Run(code, None, states)) == []) is noticed
