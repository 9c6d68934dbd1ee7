"""What `import offramp` brings and does not bring, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import offramp

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "tokenizers",
    "safetensors",
    "scipy",
    "sklearn",
    "pandas",
    "datasets",
    "rich",
)


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)


def test_import_brings_nothing_heavy() -> None:
    done = run(
        f"""
        import sys
        before = set(sys.modules)  # what the interpreter itself loads at its start is not our doing
        import offramp
        print(sorted(set({HEAVY!r}) & (set(sys.modules) - before)))
        """
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("name", offramp.__all__)
def test_exported_names_exist(name: str) -> None:
    assert getattr(offramp, name) is not None


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        offramp.lode  # noqa: B018


def test_load_is_had_without_torch() -> None:
    done = run(
        """
        import sys
        from offramp import Prediction, load
        print(sorted({"torch", "transformers"} & set(sys.modules)))
        """
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


BLOCK = """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {blocked!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Block())
"""


def test_a_missing_extra_is_named_with_the_install_line() -> None:
    done = run(
        textwrap.dedent(BLOCK.format(blocked={"torch"}))
        + textwrap.dedent(
            """
            from offramp.errors import MissingExtraError, require
            try:
                require("torch.nn", extra="train")
            except MissingExtraError as error:
                print(error)
            """
        )
    )
    assert (done.stdout.strip(), done.stderr) == (
        "this needs torch, which is not installed: pip install 'offramp[train]'",
        "",
    )


@pytest.mark.parametrize(
    "words", [["demo"], ["train", "--model", "m", "--data", "d", "--out", "o"], ["predict", "run", "text"]]
)
def test_the_command_line_names_the_missing_extra_first(words: list[str]) -> None:
    program = textwrap.dedent(BLOCK.format(blocked={"torch"})) + f"from offramp.cli import main\nmain({words!r})\n"
    done = run(program)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().splitlines() == [
        "offramp: error: this needs torch, which is not installed: pip install 'offramp[train]'"
    ]


def test_a_fault_inside_an_installed_module_is_not_called_a_missing_extra() -> None:
    done = run(
        textwrap.dedent(BLOCK.format(blocked={"numpy"}))
        + textwrap.dedent(
            """
            from offramp.errors import require
            try:
                require("safetensors.numpy", extra="train")
            except ModuleNotFoundError as error:
                print(type(error).__name__, error.name)
            """
        )
    )
    assert (done.stdout.strip(), done.stderr) == ("ModuleNotFoundError numpy", "")
