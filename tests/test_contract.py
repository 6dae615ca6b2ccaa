"""std starts on a vLLM whose inside is as its patches need it, whatever its version, and on no other."""

import importlib
import inspect
import logging
import re
import time

import pytest
import vllm
from helpers import ROOT, SIGN_MODEL
from ledger import ledger
from vllm.engine.arg_utils import EngineArgs

from vllm_std.patches import contract, fit

pytestmark = [pytest.mark.unit, pytest.mark.versions]

SERVED = {patch: needs for patch, needs in contract.CONTRACT.items() if patch not in contract.TOOLS}
NEEDS = [(patch, need) for patch, needs in SERVED.items() for need in needs]
ASKED_FOR = {"cli", "config", "refusals"}  # without them nothing asks for std: the plugin warns when it is loaded


def each(pairs) -> list:
    """Parameters of a test: a patch and a need of it."""
    return [pytest.param(*pair, id=f"{pair[0]}: {pair[1].how} {pair[1].where.rpartition('.')[2]}") for pair in pairs]


def engine_args(**options) -> EngineArgs:
    return EngineArgs(model=str(SIGN_MODEL), max_model_len=1024, **options)


@pytest.fixture(autouse=True, scope="module")
def imported():
    """All of vLLM that patches use, before these tests change it."""
    fit.misfits(tools=True)


@pytest.fixture(autouse=True)
def fresh():
    """What fits is found out once a process; vLLM is changed by these tests."""
    fit.misfits.cache_clear()
    yield
    fit.misfits.cache_clear()


def owner_of(where: str):
    """(what holds it, its name) of the last part of a name."""
    module, _, path = where.partition(":")
    *parents, name = path.split(".")
    owner = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def refusal() -> str:
    with pytest.raises(ValueError) as refused:
        fit.require()
    said = str(refused.value)
    assert "\n" not in said and said.endswith("vLLM without 'std' is not affected.")
    return said


def test_the_contract_is_about_the_patches_of_the_ledger():
    names = [patch.name for patch in ledger()]
    assert sorted(contract.CONTRACT) == sorted(names), "each patch once"


def test_this_vllm_fits():
    assert fit.misfits(tools=True) == {}


def test_holding_it_against_vllm_takes_milliseconds():
    fit.misfits()  # imports what the engine imports anyway
    fit.misfits.cache_clear()
    begun = time.perf_counter()
    fit.misfits()
    assert time.perf_counter() - begun < 1.0


@pytest.mark.parametrize("patch, need", each(NEEDS))
def test_a_name_that_is_gone_is_one_sentence(patch, need, monkeypatch):
    """The class or function itself, or the first attribute that is read of a module."""
    if need.where.endswith(":"):
        owner, name = importlib.import_module(need.where[:-1]), need.what.split()[0]
    else:
        owner, name = owner_of(need.where)
    if inspect.isclass(owner):
        monkeypatch.setattr(owner, name, None)  # gone from this class; a base may have one of that name
    elif name in vars(owner):
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.delitem(owner.environment_variables, name)
    said = refusal()
    assert f"vLLM {vllm.__version__}" in said and name in said
    using = {other for other, its in NEEDS if name in f"{its.where} {its.what}"}
    assert patch in using and re.search(r"patch '(.*?)'", said)[1] in using


@pytest.mark.parametrize("patch, need", each([pair for pair in NEEDS if pair[1].how != "reads"]))
def test_other_parameters_are_one_sentence(patch, need, monkeypatch):
    owner, name = owner_of(need.where)
    monkeypatch.setattr(owner, name, lambda of_another_vllm, /: None)
    said = refusal()
    assert "of_another_vllm" in said and name in said


@pytest.mark.parametrize("how", ["one more", "one less", "renamed"])
def test_an_overridden_method_must_be_the_same_to_the_last_parameter(how, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    signatures = {
        "one more": lambda self, request, delay_free_blocks=False, keep=False: None,
        "one less": lambda self, request: None,
        "renamed": lambda self, request, delay=False: None,
    }
    monkeypatch.setattr(Scheduler, "_free_request", signatures[how])
    said = refusal()
    assert "patch 'draft length'" in said
    assert "_free_request(self, request, delay_free_blocks) is expected, and it is" in said


@pytest.mark.parametrize("patch, need", each([pair for pair in NEEDS if pair[1].how == "reads"]))
def test_each_attribute_that_is_read_is_looked_for(patch, need):
    for word in need.what.split():
        gone = contract.Need("reads", need.where, f"{word}_of_another_vllm")
        assert f"expected to have {word}_of_another_vllm" in fit.first_misfit((gone,))


def test_a_server_that_is_asked_for_std_refuses_and_any_other_does_not_notice(monkeypatch):
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import TargetDependentARSpeculator

    monkeypatch.delattr(TargetDependentARSpeculator, "_generate_draft")
    assert engine_args().create_engine_config().speculative_config is None
    with pytest.raises(ValueError, match="patch 'draft graphs': .*_generate_draft is expected, and there is none"):
        engine_args(spec_method="std").create_engine_config()


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "0.330.0", "1.0.0"])
def test_a_version_that_nobody_tested_starts_with_a_warning_where_it_fits(version, monkeypatch, caplog):
    engine_args(spec_method="std").create_engine_config()  # what is imported for the first time sets up vLLM's logging
    vllm.logger._print_warning_once.cache_clear()  # another test may have seen the same version
    monkeypatch.setattr(vllm, "__version__", version)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    assert engine_args(spec_method="std").create_engine_config().speculative_config.method == "std"
    (said,) = {record.getMessage() for record in caplog.records if version in record.getMessage()}
    assert f"was tested with vLLM 0.32 and 0.33, not with {version}" in said


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0", "0.33.1", "0.32.1+cpu"])
def test_patch_releases_count_as_tested(version, monkeypatch):
    monkeypatch.setattr(vllm, "__version__", version)
    assert fit.tested()


IMPORTED = re.compile(r"^\s*from (vllm(?:\.[\w.]+)?) import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)
# Public names that vLLM documents, or that hold no promise of theirs.
PUBLIC = {"vllm", "vllm.platforms", "vllm.logger", "vllm.config", "vllm.forward_context"}


def test_what_is_imported_from_the_inside_of_vllm_is_in_the_contract():
    known = {need.where for needs in contract.CONTRACT.values() for need in needs}
    modules = {where.partition(":")[0] for where in known}
    for path in (ROOT / "vllm_std").rglob("*.py"):
        for module, *_ in IMPORTED.findall(path.read_text()):
            assert any(f"{known}.".startswith(f"{module}.") for known in modules | PUBLIC), f"{path}: {module}"
