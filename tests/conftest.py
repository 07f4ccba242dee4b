"""The environment of every test: eight virtual CPU devices, no network, a warm compile cache."""

import os
import pathlib
import tempfile

# Before jax is imported: without PJRT_NPROC jax 0.10 deadlocks with eight devices on two cores.
os.environ.setdefault("PJRT_NPROC", "16")
# LLVM optimizes little: small programs compile in two thirds of the processor time and mean the
# same. An XLA_FLAGS of your own takes their place; CI runs the inner rooms so, with all of it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1 "
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_PREEMPTION_SERVICE", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

from sftjax.recipes.compiled_programs import remove_torn

CACHE = pathlib.Path(os.environ.get("SFTJAX_TEST_CACHE", tempfile.gettempdir())) / "sftjax-xla"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
remove_torn(CACHE)


collect_ignore_glob = [
    "*/make_*.py",  # scripts that write golden files, with peers of their own
    "*/one_process.py",  # one of several processes that a test starts
]


@pytest.fixture(scope="session")
def minilm() -> pathlib.Path:
    """The folder of the real MiniLM-L6."""
    return asset("minilm-l6")


@pytest.fixture(scope="session")
def rated_sentences() -> pathlib.Path:
    """The folder of the real rated sentences."""
    return asset("rated-sentences")


@pytest.fixture(scope="session")
def flan_t5() -> pathlib.Path:
    """The folder of the real Flan-T5-small that writes titles."""
    return asset("flan-t5-titles")


@pytest.fixture(scope="session")
def smollm2() -> pathlib.Path:
    """The folder with the GGUF file of the real SmolLM2-135M-Instruct."""
    return asset("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def asset_folder():
    """The function that gives a real asset's folder by its name."""
    return asset


def asset(name: str) -> pathlib.Path:
    """Fetch a real asset; skip without a network, unless the environment says it must be there."""
    from sftjax.data import fetch

    try:
        return fetch(name)
    except (OSError, RuntimeError, ValueError) as error:
        if os.environ.get("SFTJAX_REQUIRE_ASSETS"):
            raise
        pytest.skip(f"{name} is not to be had here: {error}")
