import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import checkpoints  # noqa: E402

PROGRAM = os.environ.get("FLUTE_PROGRAM", str(checkpoints.ROOT / "build" / "flute"))


class Flute:
    """The program under test."""

    program = PROGRAM

    def __call__(self, *arguments, code=0, **options):
        """Runs it; the exit code must be `code`."""
        command = [PROGRAM, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
        assert result.returncode == code, f"{command}: exit code {result.returncode}\n{result.stderr}"
        return result

    def fails(self, *arguments, mentions=(), code=1, **options):
        """It must fail with one line on standard error that mentions all of that, and say nothing else."""
        result = self(*arguments, code=code, **options)
        lines = result.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("flute: "), result.stderr
        assert result.stdout == ""
        for words in mentions:
            assert str(words) in lines[0], f"no '{words}' in: {lines[0]}"
        return lines[0]

    def start(self, *arguments, **options):
        return subprocess.Popen([PROGRAM, *map(str, arguments)], **options)


@pytest.fixture(scope="session")
def flute():
    if not Path(PROGRAM).exists():
        pytest.fail(f"no program at {PROGRAM}; build it or set FLUTE_PROGRAM")
    return Flute()


@pytest.fixture
def tiny(tmp_path):
    """A tiny Llama of one shard."""
    return checkpoints.tiny_llama(tmp_path / "tiny")


@pytest.fixture(scope="session")
def quantized(flute, tmp_path_factory):
    """examples/docs-llama-small at NF4."""
    target = tmp_path_factory.mktemp("quantized") / "llama-nf4"
    flute("quantize", checkpoints.LLAMA, target, "--bits", 4)
    return target
