"""README's support matrix says what the tests say, and what their last run showed."""

import ast
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import support_matrix  # noqa: E402
import test_requests  # noqa: E402

pytestmark = pytest.mark.fast


def claimed() -> set[str]:
    """Every feature that a test of this suite says it supports."""
    calls = [
        node for path in (ROOT / "tests").glob("test_*.py") for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "supports"
    ]  # fmt: skip
    named = {argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)}
    return named | set(test_requests.SHOWS)


def test_every_feature_is_in_the_matrix_and_passed():
    """On one version of vLLM at least, and wherever it ran."""
    records = [record["outcomes"] for record in support_matrix.load()]
    assert set().union(*records) == claimed()
    assert {outcome for shown in records for tests in shown.values() for outcome in tests.values()} == {"passed"}


def test_readme_has_the_matrix_as_the_records_have_it():
    text = support_matrix.README.read_text()
    table = text.split(support_matrix.BEGIN)[1].split(support_matrix.END)[0].strip()
    assert table == support_matrix.table(support_matrix.load())
    begin, end = support_matrix.VERSIONS
    page = support_matrix.PAGE.read_text().split(begin)[1].split(end)[0].strip()
    assert page == support_matrix.versions(support_matrix.load())


def test_a_failure_and_a_test_that_was_not_run_are_shown_as_such():
    assert support_matrix.cell({"a": "passed", "b": "failed"}) == "**1 of 2**"
    assert support_matrix.cell({}) == "not run"
