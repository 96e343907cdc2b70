"Type hints: complete, true as far as mypy can tell, and there for programs that ask at run time."
import dataclasses, importlib, inspect, pkgutil, re, typing
from pathlib import Path
from types import ModuleType
import pytest
import avmae

ROOT = Path(__file__).parents[1]
MODULES = sorted(found.name for found in pkgutil.walk_packages(avmae.__path__, "avmae.") if not found.name.endswith("._modidx"))
SPOKEN = {"__init__", "__call__", "__getitem__", "__len__", "__iter__", "__contains__", "__enter__", "__exit__"}   # of the methods between underscores

def own(module: ModuleType) -> dict[str, object]:
    "The public functions and classes that a module defines itself."
    named = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: x for name, x in named.items() if (inspect.isfunction(x) or inspect.isclass(x)) and x.__module__ == module.__name__}

def functions(module: ModuleType) -> dict[str, typing.Callable]:
    "Its public functions, and the public methods and properties that its public classes define."
    found = {}
    for name, x in own(module).items():
        members = {name: x} if inspect.isfunction(x) else {f"{name}.{key}": value for key, value in vars(x).items() if key in SPOKEN or not key.startswith("_")}
        plain = {label: value.fget if isinstance(value, property) else getattr(value, "__func__", value) for label, value in members.items()}
        found |= {label: f for label, f in plain.items() if inspect.isfunction(f) and f.__module__ == module.__name__ and f.__name__ != "<lambda>"}
    return found

def bare(function: typing.Callable) -> list[str]:
    "Parameters without an annotation, and `return`; that a constructor returns nothing goes without saying."
    signature = inspect.signature(function)
    lacking = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    return lacking + ["return"] * (signature.return_annotation is signature.empty and function.__name__ != "__init__")

def test_nothing_unannotated_goes_unnoticed():
    def half(x: int, y, *rest, **more): ...
    assert bare(half) == ["y", "rest", "more", "return"]

@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_annotated_and_their_hints_resolve(name):
    module = importlib.import_module(name)
    lacking = {label: missing for label, f in functions(module).items() if (missing := bare(f))}
    assert not lacking, f"without annotation: {lacking}"
    for label, thing in {**functions(module), **own(module)}.items():
        hints = typing.get_type_hints(thing)
        if dataclasses.is_dataclass(thing): assert {field.name for field in dataclasses.fields(thing)} <= hints.keys(), label

def test_names_of_the_package_are_those_of_its_modules():
    from avmae.hub import load
    from avmae.model.avmae import AVMAE, AVMAEConfig
    from avmae.model.classifier import AVClassifier, AVClassifierConfig
    assert [getattr(avmae, name) for name in avmae.__all__] == [AVMAE, AVMAEConfig, AVClassifier, AVClassifierConfig, load]
    with pytest.raises(AttributeError, match="no attribute 'AVMEA'"): avmae.AVMEA

def test_exceptions_from_checking_are_few_and_say_which():
    comments = [line for path in (ROOT/"avmae").rglob("*.py") for line in re.findall(r"# type: ignore.*", path.read_text(encoding="utf-8"))]
    unnamed = [comment for comment in comments if not re.match(r"# type: ignore\[[a-z-]+\]", comment)]
    assert not unnamed and len(comments) <= 8, comments

def test_the_package_says_that_it_has_types():
    assert (ROOT/"avmae"/"py.typed").read_bytes() == b""
    assert '"py.typed"' in (ROOT/"setup.py").read_text(encoding="utf-8")

def test_mypy_finds_nothing(request, tmp_path):
    mypy = pytest.importorskip("mypy.api")
    kept = getattr(request.config, "cache", None)   # a minute the first time, seconds after that
    said, trouble, status = mypy.run(["--config-file", str(ROOT/"pyproject.toml"), "--cache-dir", str(kept.mkdir("mypy") if kept else tmp_path), str(ROOT/"avmae")])
    assert status == 0 and "no issues found" in said, said + trouble
