"""The support matrix says what the tests say, and what their last run showed."""

import ast
import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import support_matrix  # noqa: E402
import test_requests  # noqa: E402

pytestmark = pytest.mark.unit


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


def test_the_page_has_both_tables_as_the_records_have_them():
    page, records = support_matrix.PAGE.read_text(), support_matrix.load()
    for (begin, end), table in (
        ((support_matrix.BEGIN, support_matrix.END), support_matrix.table(records)),
        (support_matrix.VERSIONS, support_matrix.versions(records)),
    ):
        assert page.split(begin)[1].split(end)[0].strip() == table


def test_a_failure_and_a_test_that_was_not_run_are_shown_as_such():
    assert support_matrix.cell({"a": "passed", "b": "failed"}) == "**1 of 2**"
    assert support_matrix.cell({}) == "not run"
