"""The documentation: every public name has its place in the API reference, links lead somewhere."""

import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import mlp_ext

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("functional", "nn", "nn.utils", "optim", "data", "cpu", "reference")
DOCUMENTED = re.findall(
    r"^::: (mlp_ext[.\w]*)$",
    "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md"))),
    re.MULTILINE,
)


def public_names():
    """Of every module its __all__, but for the modules in there."""
    for module_name in ("mlp_ext", *(f"mlp_ext.{name}" for name in MODULES)):
        module = importlib.import_module(module_name)
        for name in module.__all__:
            if not inspect.ismodule(getattr(module, name)) and name != "__version__":
                yield f"{module_name}.{name}"


def of(name):
    """The object of a dotted name."""
    found = mlp_ext
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", list(public_names()))
def test_every_public_name_is_in_the_reference(name):
    assert DOCUMENTED.count(name) == 1, "docs/api/*.md names it as ::: NAME, once"
    found = of(name)
    if callable(found):
        docstring = found.__doc__ or ""
        assert docstring.strip(), "it has a docstring of its own"
        if inspect.isfunction(found) and found.__module__ != "mlp_ext._reference_rules":
            parameters = inspect.signature(found).parameters
            lacking = [p for p in parameters if not re.search(rf"^\s+\*?{p}: ", docstring, re.M)]
            assert not lacking, f"its docstring says nothing of {lacking}"


def test_the_reference_has_no_other_names():
    modules = {f"mlp_ext.{name}" for name in MODULES}
    extra = set(DOCUMENTED) - set(public_names()) - modules
    # What explain returns; the methods that the optimizers share; constants.
    assert extra == {
        "mlp_ext.fusion.Explanation",
        "mlp_ext.fusion.LinearReport",
        "mlp_ext.optim.SGD.step",
        "mlp_ext.optim.SGD.zero_grad",
        "mlp_ext.optim.SGD.load_state_dict",
        "mlp_ext.reference.ACTIVATIONS",
    }


LINK = re.compile(r"(?:\]\(|src=\"|srcset=\")([^)#\"\s]+)")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"])
def test_links_in_the_repository(page):
    for path in ROOT.glob(page):
        for target in LINK.findall(path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_links_in_the_site(tmp_path):
    """The pages that the site is built from; `make docs` looks at anchors as well."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "_site.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    site.stage(tmp_path / "site")
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in tmp_path.rglob("*.md")}
    assert {"index.md", "contributing.md", "benchmarks.md", "api/functional.md"} <= pages
    for page in pages:
        path = tmp_path / "site" / page
        text = path.read_text()
        assert "<picture>" not in text
        for target in LINK.findall(text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{page}: {target}"
