"""One page for each module, from its source alone. Shapes and units stand in comments behind fields and constants, and an error
says itself what was wrong, so both are read from the source; nothing is imported."""
import ast, inspect, io, re, tokenize
from pathlib import Path
from typing import NamedTuple

SPAN = re.compile(r"(`[^`]*`)")
SPECIAL = re.compile(r"([\\*_<\[\]{}|#~^$])")
SHORT = 90   # characters of a value that stands beside its name

class Module(NamedTuple):
    "A module's source, as text and as a tree, and its comments by line number."
    name: str
    text: str
    tree: ast.Module
    comments: dict[int, str]

def read(path: Path, name: str) -> Module:
    "Parse one file."
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return Module(name, text, ast.parse(text), {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT})

def public(module: Module) -> list[str]:
    "The names of `__all__`."
    assigned = [node for node in module.tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return ast.literal_eval(assigned[0].value) if assigned else []

def borrowed(module: Module) -> dict[str, str]:
    "Public names that another module of the library defines, with their full names there."
    package, found = module.name.split(".")[:-1], {}
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom):
            start = package[:len(package) - node.level + 1] if node.level else []
            found |= {alias.asname or alias.name: ".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return {name: found[name] for name in public(module) if name in found}

def plain(text: str) -> str:
    "Text as markdown that shows the same characters; only `code` keeps its meaning."
    return "".join(part if part.startswith("`") else SPECIAL.sub(r"\\\1", part) for part in SPAN.split(text))

def message(node: ast.expr) -> str | None:
    "What an error says, with {the expressions} that it fills in; None where that is not written at the spot."
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}" for part in node.values)

def errors(nodes: list[ast.AST]) -> list[str]:
    "A list item for each error that is raised in these functions themselves."
    raised = [node.exc for top in nodes for node in ast.walk(top) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    said = [(ast.unparse(call.func), message(call.args[0]) if call.args else None) for call in raised]
    return [f"- `{kind}`" + (f": {plain(text)}" if text else "") for kind, text in dict.fromkeys(said)]

def directive(kind: str, signature: str, *body: str, fence: str = "````") -> str:
    "A description in Sphinx's Python domain."
    inner = "\n\n".join(part for part in body if part)
    return f"{fence}{{py:{kind}}} {signature}\n\n{inner}\n{fence}"

def listed(head: str, items: list[str]) -> str:
    "A list under a word, if there is anything to list."
    return f"**{head}**\n\n" + "\n".join(items) if items else ""

def signature(node: ast.FunctionDef, method: bool = False) -> str:
    "Name, parameters with types and defaults as written, and what is returned."
    parameters = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(node.args)) if method else ast.unparse(node.args)
    return f"{node.name}({parameters})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")

def function(node: ast.FunctionDef, method: bool = False, fence: str = "````") -> str:
    "A function, or a method or property of a class."
    words = {ast.unparse(decorator) for decorator in node.decorator_list}
    if words & {"property", "cached_property", "functools.cached_property"}:
        kind, head = "property", node.name + (f"\n:type: {ast.unparse(node.returns)}" if node.returns else "")
    else:
        kind, head = "method" if method else "function", signature(node, method and "staticmethod" not in words)
        head += "".join(f"\n:{word}:" for word in sorted(words & {"classmethod", "staticmethod"}))
    return directive(kind, head, plain(ast.get_docstring(node) or ""), listed("Errors", errors([node])), fence=fence)

def field(module: Module, node: ast.AnnAssign) -> str:
    "One field of a dataclass or named tuple with the comment behind it: its meaning, shape or unit."
    comment = module.comments.get(node.end_lineno, "")
    return f"- `{ast.unparse(node)}`" + (f": {plain(comment)}" if comment else "")

def klass(module: Module, node: ast.ClassDef) -> str:
    "A class: its fields, its errors, its public methods."
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    hidden = [item for name, item in methods.items() if name.startswith("_")]
    head = signature(methods["__init__"], True).replace("__init__", node.name, 1).removesuffix(" -> None") if "__init__" in methods else node.name
    fields = [field(module, item) for item in node.body if isinstance(item, ast.AnnAssign)]
    bases = f"Extends {', '.join(f'`{ast.unparse(base)}`' for base in node.bases)}." if node.bases else ""
    shown = [function(item, True) for name, item in methods.items() if not name.startswith("_")]
    return directive("class", head, plain(ast.get_docstring(node) or ""), bases, listed("Fields", fields), listed("Errors", errors(hidden)), *shown, fence="`````")

def above(module: Module, line: int) -> str:
    "The comment lines that end right above a line; nbdev's marks do not count."
    lines, found = module.text.splitlines(), []
    while line > 1 and lines[line - 2].startswith("# ") and not lines[line - 2].startswith("# %%"):
        line -= 1
        found.insert(0, module.comments[line])
    return " ".join(found)

def value(module: Module, node: ast.Assign | ast.AnnAssign, name: str) -> str:
    "A constant: its value as written, and the comment behind it or above it."
    source, comment = ast.get_source_segment(module.text, node), module.comments.get(node.end_lineno) or above(module, node.lineno)
    written = ast.unparse(node.value)
    if len(written) <= SHORT and "`" not in written: return directive("data", name, f"`= {written}`", plain(comment))
    return directive("data", name, plain(comment), f"~~~python\n{source}\n~~~")

def entries(module: Module) -> dict[str, str]:
    "What the page says about each public name, in the order of the source."
    names = set(public(module))
    found = {name: f"`{name}` is {{py:obj}}`{full}`." for name, full in borrowed(module).items()}
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names: found[node.name] = function(node)
        if isinstance(node, ast.ClassDef) and node.name in names: found[node.name] = klass(module, node)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in ast.walk(targets[0]):
                if isinstance(target, ast.Name) and target.id in names: found[target.id] = value(module, node, target.id)
    return found

def page(module: Module, links: str) -> str:
    "The page of a module; `links` leads to its chapter and its tests."
    about = inspect.cleandoc(ast.get_docstring(module.tree) or "")
    return "\n\n".join([f"# {module.name}", f"> {plain(about)}", links, f"```{{py:module}} {module.name}\n```", *entries(module).values()]) + "\n"
