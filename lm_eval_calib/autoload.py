"""Lets a released lm-eval find our tasks and our model without a flag; to be deleted when releases read entry points.

`lm_eval_calib_autoload.pth` imports this module when the interpreter starts. It does one thing then: it puts
a finder in front of `sys.meta_path` that waits for `lm_eval.tasks.manager`. When lm-eval imports that module,
the finder steps out of the way and, once the module stands, `TaskIndex.build` is given our task folder beside
lm-eval's own. So an interpreter that never imports lm_eval pays for two small modules and nothing else.

Whatever goes wrong here is a warning, never an error of lm-eval. `LM_EVAL_CALIB_AUTOLOAD=0` switches it off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType
    from typing import Any

TRIGGER = "lm_eval.tasks.manager"
MODELS = {"hf-calib": "lm_eval_calib.scoring:SharedPrefixLM"}


class _WaitForManager:
    """A meta-path finder that acts on one import and removes itself."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != TRIGGER:
            return None
        sys.meta_path.remove(cls)  # type: ignore[arg-type]
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        try:
            loader: Any = spec.loader
            run_module = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run_module(module)
                _guarded(_connect, module)

            loader.exec_module = exec_module
        except Exception as error:  # a loader that takes no attributes
            _warn(error)
        return spec


def install() -> None:
    """Wait for lm-eval's task manager, unless `LM_EVAL_CALIB_AUTOLOAD=0` or it is being waited for already."""
    if os.environ.get("LM_EVAL_CALIB_AUTOLOAD") == "0" or _WaitForManager in sys.meta_path:
        return
    if TRIGGER in sys.modules:
        _guarded(_connect, sys.modules[TRIGGER])
    else:
        sys.meta_path.insert(0, _WaitForManager)  # type: ignore[arg-type]


def task_folder() -> Path:
    """The folder with our task files, the value for `lm_eval --include_path`."""
    from importlib.resources import files
    from pathlib import Path

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
    from pathlib import Path

    return Path(str(manager.__file__)).resolve().parent


def _reads_task_entry_points(manager: ModuleType) -> bool:
    # The releases that will read the entry points have to name their group somewhere in lm_eval/tasks/*.py.
    sources = (path.read_text(encoding="utf-8") for path in _stock_folder(manager).glob("*.py"))
    return any("entry_points" in source and "lm_eval.tasks" in source for source in sources)


def _register_models() -> None:
    import lm_eval.models  # its own first: lm-eval registers them only into an empty registry
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
    import warnings

    warnings.warn(
        f"lm-eval-calib could not add its tasks to lm-eval ({type(error).__name__}: {error}); use "
        '--include_path "$(lm-eval-calib tasks --path)", and LM_EVAL_CALIB_AUTOLOAD=0 silences this',
        RuntimeWarning,
        stacklevel=2,
    )
