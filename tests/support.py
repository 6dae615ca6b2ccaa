"""What tests say they support, and how they ended: a pytest plugin that writes it down, `pytest --support FILE`.

A test says so with `@pytest.mark.supports("feature", ...)`; `scripts/support_matrix.py` makes a table of it.
"""

import json
from datetime import date
from pathlib import Path


class Support:
    def __init__(self, path: str):
        self.path = Path(path)
        self.outcomes: dict[str, dict[str, str]] = {}  # {feature: {test: outcome}}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != "call" and report.passed:
            return
        for kind, feature in report.user_properties:
            if kind == "supports":
                self.outcomes.setdefault(feature, {})[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        import vllm

        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "vllm": vllm.__version__,
            "date": date.today().isoformat(),
            "outcomes": {f: dict(sorted(t.items())) for f, t in sorted(self.outcomes.items())},
        }
        self.path.write_text(json.dumps(found, indent=1) + "\n")


def mark(items) -> None:
    """Let reports carry what their tests support, from other processes too."""
    for item in items:
        for marker in item.iter_markers("supports"):
            item.user_properties += [("supports", feature) for feature in marker.args]
