"""Lets a released lm-eval find our tasks and our model without a flag; to be deleted when releases read entry points.

When the interpreter starts, `lm_eval_calib_autoload.pth` puts a finder of a few lines in front of `sys.meta_path`
that waits for `lm_eval.tasks.manager`. When lm-eval imports that module, the finder steps out of the way and calls
`find_spec` here: once the module stands, `TaskIndex.build` is given our task folder beside lm-eval's own. So an
interpreter that never imports lm_eval imports nothing of ours.

Whatever goes wrong here is a warning, never an error of lm-eval. `LM_EVAL_CALIB_AUTOLOAD=0` switches it off.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

MODELS = {"hf-calib": "lm_eval_calib.scoring:SharedPrefixLM"}


def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    """The module's own spec, whose loader connects our tasks after it has run the module."""
    specs = (finder.find_spec(name, path, target) for finder in sys.meta_path)
    spec = next((spec for spec in specs if spec is not None), None)
    if spec is None or spec.loader is None:
        return spec
    loader: Any = spec.loader
    run_module = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run_module(module)
        _guarded(_connect, module)

    try:
        loader.exec_module = exec_module
    except AttributeError as error:  # a loader that takes no attributes
        _warn(error)
    return spec


def task_folder() -> Path:
    """The folder with our task files, the value for `lm_eval --include_path`."""
    from importlib.resources import files

    return Path(str(files("lm_eval_calib.tasks")))


def _connect(manager: ModuleType) -> None:
    _register_models()
    if _reads_task_entry_points(manager):
        return
    index_class = manager.TaskIndex
    build = index_class.build

    def build_with_ours(paths: Iterable[Path], **options: Any) -> Any:
        paths = list(paths)
        # Only beside lm-eval's own tasks (`include_defaults`), after them and before the user's folders, so that
        # a user's task of the same name wins; and not twice, if the user names our folder too.
        if paths and paths[0].resolve() == _stock_folder(manager):
            _guarded(_insert_ours, paths)
        return build(paths, **options)

    index_class.build = staticmethod(build_with_ours)


def _insert_ours(paths: list[Path]) -> None:
    ours = task_folder()
    if all(path.resolve() != ours.resolve() for path in paths):
        paths.insert(1, ours)


def _stock_folder(manager: ModuleType) -> Path:
    return Path(str(manager.__file__)).resolve().parent


def _reads_task_entry_points(manager: ModuleType) -> bool:
    # The releases that will read the entry points have to name their group somewhere in lm_eval/tasks/*.py.
    sources = (path.read_text(encoding="utf-8") for path in _stock_folder(manager).glob("*.py"))
    return any("entry_points" in source and "lm_eval.tasks" in source for source in sources)


def _register_models() -> None:
    import lm_eval.models  # noqa: F401  its own first: lm-eval registers them only into an empty registry
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


def _guarded(action: Any, argument: Any) -> None:
    try:
        action(argument)
    except Exception as error:
        _warn(error)


def _warn(error: Exception) -> None:
    warnings.warn(
        f"lm-eval-calib could not add its tasks to lm-eval ({type(error).__name__}: {error}); use "
        '--include_path "$(lm-eval-calib tasks --path)", and LM_EVAL_CALIB_AUTOLOAD=0 silences this',
        RuntimeWarning,
        stacklevel=2,
    )
