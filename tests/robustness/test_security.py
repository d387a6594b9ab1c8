"""No pickle, no import and no attribute access at a file's word; whatever a plan or manifest says, an error is ours."""

import ast
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerprune.checkpoint.manifest import Manifest
from oracle import fuzz_plan

SOURCE = Path(__file__).parents[2] / "src" / "layerprune"
FILES = sorted(SOURCE.rglob("*.py"))

#: What can run code that a file holds.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
UNSAFE_CALLS = {"torch.load", "torch.save", "torch.package", "torch.jit.load", "numpy.load", "np.load"}
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
#: What imports by a name that is no literal: the package's own, libraries', extras', and those of the user's shell.
IMPORTERS = {
    "__init__.py",
    "adapters/transformers/kv_cache.py",
    "adapters/transformers/reference_model.py",
    "environment/description.py",
    "environment/extras.py",
    "sources/packages.py",
}

#: What reads arrays of numpy; never with pickles.
READERS_OF_ARRAYS = {"sources/arrays.py"}

#: What reads checkpoints of trainers; tensors and plain values only.
READERS_OF_CHECKPOINTS = {"integrations/lightning.py"}

READERS = READERS_OF_ARRAYS | READERS_OF_CHECKPOINTS


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_library_runs_no_code_from_files(path):
    name = str(path.relative_to(SOURCE))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {module.partition(".")[0] for module in modules} & UNSAFE_MODULES, f"{name}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert dotted(node) not in UNSAFE_CALLS or name in READERS, f"{name}:{node.lineno}"
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            assert called not in UNSAFE_NAMES, f"{name}:{node.lineno}"
            if called == "torch.load":
                assert ast.unparse(node).endswith("weights_only=True)"), f"{name}:{node.lineno}"
            if called == "np.load":
                assert ast.unparse(node).endswith("allow_pickle=False)"), f"{name}:{node.lineno}"
            if called.endswith("import_module"):
                assert name in IMPORTERS, f"{name}:{node.lineno}"


@pytest.mark.parametrize(
    "name",
    [
        *("plan/plan", "plan/provenance", "edits/records", "edits/validation", "modules/fingerprint"),
        *("checkpoint/manifest", "checkpoint/load"),
    ],
)
def test_what_reads_files_reads_no_attribute_by_name(name):
    for node in ast.walk(ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert dotted(node.func) not in {"getattr", "setattr", "delattr", "vars", "globals"} or (
                # to look for tensors without values, and for the record of plans under its one name (held below)
                dotted(node.func) == "vars" and name in ("checkpoint/load", "plan/provenance")
            ), f"{name}:{node.lineno}"
            assert not dotted(node.func).endswith(("get_submodule", "get_parameter", "get_buffer")), (
                f"{name}:{node.lineno}"
            )


def test_the_record_of_plans_is_read_and_written_under_its_one_name_only():
    """Of what a module holds, provenance looks at one constant name, whatever a file says."""
    tree = ast.parse((SOURCE / "plan" / "provenance.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    looks = [node for node in calls if dotted(node.func) == "vars"]
    named = [
        node
        for node in calls
        if (isinstance(node.func, ast.Attribute) and node.func.value in looks and dotted(node.args[0]) == "ATTRIBUTE")
        or (node.args and node.args[0] in looks and dotted(node.args[1]) == "ATTRIBUTE")
    ]
    assert looks
    assert len(named) == len(looks)


# ---- fuzz ------------------------------------------------------------------------------------------------------------

SETTINGS = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


@pytest.mark.parametrize("path", sorted(fuzz_plan.CORPUS.glob("plan/*.json")), ids=lambda path: path.stem)
def test_the_corpus_of_plans(path):
    """All are of other models or of none: what they break is in their names."""
    assert fuzz_plan.check_plan(path.read_text(encoding="utf-8"), fuzz_plan.bases()[0][1]) == "refused"


@pytest.mark.parametrize("path", sorted(fuzz_plan.CORPUS.glob("manifest/*.json")), ids=lambda path: path.stem)
def test_the_corpus_of_manifests(path):
    assert fuzz_plan.check_manifest(path.read_text(encoding="utf-8")) == ("read" if path.stem == "whole" else "refused")


def test_the_texts_that_are_mutated_are_well_formed():
    assert len(fuzz_plan.bases()) > 4
    assert {fuzz_plan.check_plan(text, model) for text, model in fuzz_plan.bases()} == {"carried out"}
    kinds = {kind for text, _ in fuzz_plan.bases() for kind in fuzz_plan.KINDS if f'"{kind}"' in text}
    assert {"delete", "pass", "drop", "slice"} <= kinds


@SETTINGS
@given(st.integers(0, 2**32))
def test_a_mutated_plan_is_carried_out_or_refused(seed):
    rng = random.Random(seed)
    text, model = rng.choice(fuzz_plan.bases())
    assert fuzz_plan.check_plan(fuzz_plan.mutated(text, rng), model) in ("carried out", "refused")


@SETTINGS
@given(st.integers(0, 2**32))
def test_a_mutated_manifest_is_refused(seed):
    text = (fuzz_plan.CORPUS / "manifest" / "whole.json").read_text(encoding="utf-8")
    changed = fuzz_plan.mutated(text, random.Random(seed))
    assert changed == text or fuzz_plan.check_manifest(changed) == "refused"


@SETTINGS
@given(st.integers(0, 2**32))
def test_a_mutated_manifest_with_a_right_checksum_names_files_of_its_folder_only(seed):
    text = (fuzz_plan.CORPUS / "manifest" / "whole.json").read_text(encoding="utf-8")
    changed = fuzz_plan.mutated(text, random.Random(seed))
    try:
        manifest = Manifest.model_validate_json(changed)
    except ValueError:
        return
    text = manifest.to_json()
    assert fuzz_plan.check_manifest(text) in ("read", "refused")


@SETTINGS
@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode(errors="surrogateescape"))))
def test_any_text_at_all_is_refused(text):
    assert fuzz_plan.check_plan(text, fuzz_plan.bases()[0][1]) == "refused"
    assert fuzz_plan.check_manifest(text) == "refused"
