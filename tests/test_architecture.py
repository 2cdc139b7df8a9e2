"""Who may import whom, read from the source; and that asking for help loads nothing heavy, seen in a process."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from c2vl_manifests.datasets import dataset_names
from c2vl_pipeline import readers
from c2vl_pipeline.engines import BACKENDS
from support import ROOT

PARTS = {
    "c2vl_manifests": ROOT / "manifests",
    "c2vl_pipeline": ROOT / "pipeline",
    "c2vl_training": ROOT / "training",
    "c2vl_evaluation": ROOT / "evaluation",
}
MODULES = sorted((name, path) for name, root in PARTS.items() for path in (root / name).rglob("*.py"))
STANDARD = frozenset(sys.stdlib_module_names)


@dataclass(frozen=True)
class Import:
    """One imported module as a dotted name; `lazy` inside a function, `typing` under TYPE_CHECKING."""

    module: str
    lazy: bool
    typing: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def dotted(path: Path, part: str) -> str:
    steps = path.relative_to(PARTS[part]).with_suffix("").parts
    return ".".join(steps[:-1] if steps[-1] == "__init__" else steps)


def imports(source: str, package: str) -> list[Import]:
    """Return everything a module imports, at whatever depth; `from a import b` counts as a and a.b."""
    found: list[Import] = []

    def walk(node: ast.AST, lazy: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found.append(Import(base, lazy, typing))
            found.extend(Import(f"{base}.{alias.name}", lazy, typing) for alias in node.names)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in {"import_module", "importlib.import_module", "__import__"} and node.args:
                (text,) = (
                    [node.args[0].value] if isinstance(node.args[0], ast.Constant) else [ast.unparse(node.args[0])]
                )
                found.append(Import(str(text).removeprefix("f'"), lazy, typing))
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                walk(child, lazy, True)
            for child in node.orelse:
                walk(child, lazy, typing)
            return
        for below in ast.iter_child_nodes(node):
            walk(below, lazy, typing)

    walk(ast.parse(source), False, False)
    return found


def imports_of(part: str, path: Path) -> list[Import]:
    package = dotted(path.parent / "__init__.py", part)
    return imports(path.read_text("utf-8"), package)


ALL = [(part, path, found) for part, path in MODULES for found in imports_of(part, path)]


def offenders(part: str | None, *forbidden: str, allowed: tuple[str, ...] = (), only_eager: bool = False) -> list[str]:
    """Return `module imports X` of every import of a forbidden top-level package outside the allowed modules."""
    return sorted(
        f"{dotted(path, of)} imports {found.module}"
        for of, path, found in ALL
        if part in {of, None}
        and found.top in forbidden
        and dotted(path, of) not in allowed
        and not (only_eager and (found.lazy or found.typing))
    )


# ---------------------------------------------------------------------------------- the reader itself


def test_the_reader_sees_imports_of_every_form():
    source = """
import a.b as c
from d import e
from . import near
from .near import thing
from ..far import thing
if TYPE_CHECKING:
    from typed import x
else:
    import untyped
def f():
    import lazy
    importlib.import_module("named")
    importlib.import_module(f"c2vl_pipeline.{module}")
class K:
    import held
"""
    found = {i.module: (i.lazy, i.typing) for i in imports(source, "pkg.sub")}
    assert found["a.b"] == found["d.e"] == found["pkg.sub.near"] == found["untyped"] == (False, False)
    assert found["pkg.sub.near.thing"] == found["pkg.far.thing"] == found["held"] == (False, False)
    assert found["typed"] == (False, True)
    assert found["lazy"] == found["named"] == (True, False)
    assert found["c2vl_pipeline.{module}'"] == (True, False)


def test_the_reader_found_the_whole_house():
    names = {dotted(path, part) for part, path in MODULES}
    assert {f"{part}.cli" for part in PARTS if part != "c2vl_manifests"} <= names
    assert {"c2vl_pipeline.engines.hf_captioner", "c2vl_training.encoders.stgcn", "c2vl_manifests.cli_common"} <= names
    assert offenders("c2vl_training", "c2vl_manifests")  # allowed, and seen


# --------------------------------------------------------------------------------------- directions


def test_manifests_import_none_of_the_others():
    assert offenders("c2vl_manifests", "c2vl_pipeline", "c2vl_training", "c2vl_evaluation") == []


def test_manifests_need_the_standard_library_numpy_pyarrow_and_pydantic_only():
    ends = {("c2vl_manifests.cli_common", "typer"), ("c2vl_manifests.cli_output", "rich")}
    ends |= {("c2vl_manifests.pages", "jinja2"), ("c2vl_manifests.pages", "PIL")}
    foreign = {
        (dotted(path, part), found.top)
        for part, path, found in ALL
        if part == "c2vl_manifests" and found.top not in STANDARD | {"c2vl_manifests", "numpy", "pyarrow", "pydantic"}
    }
    assert foreign == ends


def test_the_pipeline_never_imports_training_or_evaluation():
    assert offenders("c2vl_pipeline", "c2vl_training", "c2vl_evaluation") == []


def test_training_never_imports_the_pipeline_or_evaluation():
    assert offenders("c2vl_training", "c2vl_pipeline", "c2vl_evaluation") == []


def test_evaluation_imports_the_pipeline_inside_functions_if_at_all():
    assert offenders("c2vl_evaluation", "c2vl_pipeline", only_eager=True) == []


def test_nothing_but_a_cli_imports_a_cli():
    found = [
        f"{dotted(path, part)} imports {i.module}"
        for part, path, i in ALL
        if i.top in PARTS and "cli" in i.module.split(".") and "cli" not in dotted(path, part).split(".")
    ]
    assert found == []


# ------------------------------------------------------------------------------- folders of the pipeline

_STAGES = ("readers", "engines", "raw", "workspace")
MAY_IMPORT = {
    "readers": (),
    "synthetic": (),
    "raw": ("readers",),
    "workspace": ("readers",),
    "engines": ("readers", "workspace", "weights"),
    "stages": _STAGES,
    "execution": (*_STAGES, "stages"),
    "maintenance": (*_STAGES, "stages", "execution"),
    "browse": ("readers", "engines", "workspace", "stages"),
    "publishing": ("workspace", "stages"),
}
"""Folder of `c2vl_pipeline` -> the others that it may import; the command line may import all."""


def test_folders_of_the_pipeline_import_only_those_below_them():
    def room(module: str) -> str:
        steps = module.split(".")
        return steps[1] if steps[0] == "c2vl_pipeline" and len(steps) > 1 else ""

    found = {
        f"{dotted(path, part)} imports {i.module}"
        for part, path, i in ALL
        if (own := room(dotted(path, part))) and not own.startswith("cli")
        if (other := room(i.module)) and other not in {own, *MAY_IMPORT[own]}
    }
    assert found == set()


EVALUATION = (
    "results", "features", "metrics", "clips", "cache", "context", "comparison", "protocols", "prediction", "export", "language", "entries", "table",
    "report", "paper",
)  # fmt: skip
"""Modules and folders of `c2vl_evaluation`: each imports only those before it; the command line may import all."""


def test_modules_of_evaluation_import_only_those_below_them():
    def room(module: str) -> str:
        steps = module.split(".")
        return steps[1] if steps[0] == "c2vl_evaluation" and len(steps) > 1 else ""

    found = {
        f"{dotted(path, part)} imports {i.module}"
        for part, path, i in ALL
        if (own := room(dotted(path, part))) and not own.startswith("cli") and not dotted(path, part).endswith(".cli")
        if (other := room(i.module)) and EVALUATION.index(other) > EVALUATION.index(own)
    }
    assert found == set()


def _texts(tree: ast.Module) -> list[ast.Constant]:
    """Return the strings of a module that are no docstrings."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
    ]


def test_no_dataset_or_reader_is_known_by_name_outside_readers():
    names = "|".join(re.escape(name) for name in set(dataset_names()) - {*readers.READERS})
    known = [
        f"{dotted(path, part)}:{text.lineno}: {text.value[:60]}"
        for part, path in MODULES
        if not dotted(path, part).startswith("c2vl_pipeline.readers")
        for text in _texts(ast.parse(path.read_text("utf-8")))
        if text.value in readers.READERS or re.search(rf"(?<![\w-])({names})(?![\w-])", text.value)
    ]
    assert known == []
    shared = {"__init__", "base", "video", "captions", "tracking"}
    kinds = {path.stem for path in Path(readers.__file__).parent.glob("*.py")} - shared
    doors = [
        f"{dotted(path, part)} imports {i.module}"
        for part, path, i in ALL
        if not dotted(path, part).startswith("c2vl_pipeline.readers")
        and i.module.startswith("c2vl_pipeline.readers.")
        and i.module.split(".")[2] in kinds
    ]
    assert doors == []


NAMES = {name for _, name in BACKENDS}
OUTSIDE_ENGINES = [
    (dotted(path, part), ast.parse(path.read_text("utf-8")))
    for part, path in MODULES
    if not dotted(path, part).startswith("c2vl_pipeline.engines")
]


def test_no_engine_is_known_by_name_outside_engines():
    also_words = {"skeleton", "motion"}  # a kind of raw file, a stream of the trainer
    names = "|".join(re.escape(name) for name in sorted(NAMES - also_words))
    found = [
        f"{module}:{text.lineno}: {text.value[:60]}"
        for module, tree in OUTSIDE_ENGINES
        for text in _texts(tree)
        if re.search(rf"(?<![\w-])({names})(?![\w-])", text.value)
    ]
    assert found == []


def test_no_back_end_is_compared_with_the_name_of_an_engine_outside_engines():
    found = [
        f"{module}:{node.lineno}: {ast.unparse(node)}"
        for module, tree in OUTSIDE_ENGINES
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and "backend" in ast.unparse(node)
        and any(isinstance(part, ast.Constant) and part.value in NAMES for part in ast.walk(node))
    ]
    assert found == []


def test_no_engine_is_imported_outside_engines():
    modules = {entry.factory.partition(":")[0] for entry in BACKENDS.values()}
    found = [
        f"{dotted(path, part)} imports {i.module}"
        for part, path, i in ALL
        if i.module in modules and not dotted(path, part).startswith("c2vl_pipeline.engines")
    ]
    assert found == []


# ---------------------------------------------------------------------------------- foreign packages


def test_only_clis_and_the_terminal_import_typer_and_rich():
    clis = [name for part, path in MODULES if (name := dotted(path, part)).split(".")[-1].startswith("cli")]
    allowed = ("c2vl_manifests.cli_common", *clis)
    assert {f"{part}.cli" for part in PARTS if part != "c2vl_manifests"} < set(clis)
    assert offenders(None, "typer", "rich", "click", allowed=allowed) == []


def test_only_engines_import_model_libraries():
    libraries = ("transformers", "groundingdino", "llava", "openai", "huggingface_hub", "tokenizers")
    engines = tuple(
        dotted(path, part) for part, path in MODULES if dotted(path, part).startswith("c2vl_pipeline.engines.")
    )
    assert offenders(None, *libraries, allowed=engines) == []


def test_the_pipeline_touches_torch_in_engines_only():
    engines = tuple(
        dotted(path, part) for part, path in MODULES if dotted(path, part).startswith("c2vl_pipeline.engines.")
    )
    assert offenders("c2vl_pipeline", "torch", "safetensors", allowed=engines) == []


def test_only_workers_knows_dask():
    # the synthetic dataset is made by a pool of its own: it is no stage
    allowed = ("c2vl_pipeline.execution.workers", "c2vl_pipeline.synthetic.dataset", "c2vl_pipeline.synthetic.render")
    assert offenders(None, "dask", "distributed", allowed=allowed) == []


def test_nobody_imports_torchvision():
    assert offenders(None, "torchvision", "torchaudio") == []


def test_no_pickle_is_ever_loaded():
    assert offenders(None, "pickle", "dill", "joblib", "cloudpickle", "shelve") == []
    calls = [
        f"{dotted(path, part)}:{node.lineno}"
        for part, path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and (
            (
                ast.unparse(node.func) == "torch.load"
                and not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            )
            or any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
        )
    ]
    assert calls == []


PRINTERS = r"print|(typer|click)\.(secho|echo)|(.*\.)?Console|sys\.(__)?std(out|err)(__)?\.write(lines)?|os\.write|(.*\.)?warn|traceback\.print_.*"


def test_only_the_module_that_makes_controls_visible_prints():
    printers = {
        dotted(path, part)
        for part, path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and re.fullmatch(PRINTERS, ast.unparse(node.func))
    }
    assert printers == {"c2vl_manifests.cli_output"}


@pytest.mark.parametrize(("part", "path"), MODULES, ids=[dotted(path, part) for part, path in MODULES])
def test_every_module_says_what_it_is_for(part, path):
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert text
    assert len(text.split()) > 2


# ------------------------------------------------------------------------------------- light --help

HEAVY = (
    "torch",
    "transformers",
    "pyarrow",
    "cv2",
    "scipy",
    "sklearn",
    "dask",
    "distributed",
    "matplotlib",
    "tensorboard",
)
COMMANDS = {
    "c2vl_pipeline": (
        "synth", "index", "skeletons", "crop", "caption", "embed", "pack", "prompts", "status",
        "verify", "inspect", "explain", "audit", "export", "layouts", "publish",
    ),
    "c2vl_training": ("pretrain", "supervised", "random", "export"),
    "c2vl_evaluation": (
        "run", "compare", "predict", "export", "benchmark", "report", "zeroshot", "features", "retrieval", "search", "paper",
    ),
}  # fmt: skip
PROBE = """
import sys
from {part}.cli import app
import typer.main
names = sorted(typer.main.get_command(app).commands)
for words in [[], *([name] for name in names)]:
    sys.argv = ["c2vl", *words, "--help"]
    try:
        from {part}.cli import main
        main()
    except SystemExit as stop:
        assert not stop.code, (words, stop.code)
    heavy = [name for name in {heavy} if name in sys.modules]
    print(*words, "loads", *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize("part", COMMANDS)
def test_help_of_every_command_loads_nothing_heavy(part):
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(part=part, heavy=HEAVY)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = dict(line.rsplit(" loads", 1) if " loads" in line else ("", line[6:]) for line in done.stderr.splitlines())
    assert {*COMMANDS[part]} <= {*seen}
    assert {name: heavy for name, heavy in seen.items() if heavy.strip()} == {}
    for name in COMMANDS[part]:
        assert f" {name} " in done.stdout
